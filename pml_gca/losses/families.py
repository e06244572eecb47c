"""How each family of PML losses takes synthetic negatives: one function, dispatched on the loss's type.

Register a loss of your own in three lines:

    @synthetic_loss.register(MyPairLoss)
    def _(loss, batch):
        return loss(batch.embeddings, batch.labels, batch.pairs(), batch.references(), batch.reference_labels())

If it takes no references, but pairs within one batch, the third line is
`return loss(batch.references(), batch.reference_labels(), batch.pairs())`.
"""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn

from ..generators.base_generator import SyntheticNegatives
from ..generators.planning import next_positive
from ..utils.dtypes import compute_dtype
from ..utils.norms import excess_of
from ..utils.row_dots import norm_or_floor, row_dots

CALL_FORMS = (
    "Return the value of a call that uses them. Pairs with references: loss(batch.embeddings, batch.labels, "
    "batch.pairs(), batch.references(), batch.reference_labels()). Pairs within one batch: loss(batch.references(), "
    "batch.reference_labels(), batch.pairs()). Labels alone: loss(torch.cat([batch.embeddings, "
    "batch.negatives.embeddings]), torch.cat([batch.labels, batch.negatives.labels]))."
)


@dataclass(frozen=True)
class SyntheticBatch:
    """A batch and the synthetic negatives of its anchors.

    Attributes:
        embeddings: (B, D), the anchors, with gradient.
        labels: (B,) long.
        nodes: (N, D), the batch followed by references, if any. Real positives come from here.
        node_labels: (N,) long.
        negatives: S synthetic negatives; each belongs to its anchor alone.
    """

    embeddings: Tensor
    labels: Tensor
    nodes: Tensor
    node_labels: Tensor
    negatives: SyntheticNegatives

    def references(self) -> Tensor:
        """Return (N + S, D): real nodes, then synthetic negatives."""
        return torch.cat([self.nodes, self.negatives.embeddings])

    def reference_labels(self) -> Tensor:
        """Return the (N + S,) long labels of `references`."""
        return torch.cat([self.node_labels, self.negatives.labels])

    def positive_mask(self) -> Tensor:
        """Return a (B, N) bool mask: the node has the anchor's class and is not the anchor itself."""
        return (self.labels[:, None] == self.node_labels).fill_diagonal_(False)

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return PML's pair tuple (a1, p, a2, n): real positives and own synthetic negatives, as reference rows."""
        anchors, positives = self.positive_mask().nonzero(as_tuple=True)
        synthetic = torch.arange(len(self.negatives), device=self.nodes.device) + len(self.nodes)
        return anchors, positives, self.negatives.anchors, synthetic

    def own_mask(self, anchors: Tensor) -> Tensor:
        """Return an (R, S) bool mask: the synthetic negative belongs to the anchor, for (R,) `anchors`."""
        return anchors[:, None] == self.negatives.anchors


@singledispatch
def synthetic_loss(loss: nn.Module, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn: `loss` on anchors, their real positives and their own synthetic negatives.

    Returns:
        A scalar.

    Raises:
        TypeError: no function is registered for losses of this type.
    """
    raise TypeError(unknown_loss_message(loss))


def unknown_loss_message(loss: object) -> str:
    """Return the error message for a loss whose type has no registered function."""
    hint = _hint(loss) or (
        "For a loss of your own, register a function with pml_gca.losses.synthetic_loss.register(YourLoss). "
        f"{CALL_FORMS}"
    )
    return f"loss must be of a type that is registered with synthetic_loss, got {type(loss).__name__}. {hint}"


def _hint(loss: object) -> str:
    """Return advice for an object that is around a loss; empty if there is none."""
    if hasattr(loss, "generator_level"):
        return "It has its generator already: use it as it is"
    for inside in ("loss", "module", "_orig_mod"):
        if hasattr(getattr(loss, inside, None), "generator_level"):
            return "The loss inside it has its generator already: use it as it is"
        if isinstance(getattr(loss, inside, None), nn.Module):
            return f"Wrap the loss inside it, HardNegativeGenerationLoss(loss.{inside}, generator), and put it around"
    return ""


def tuple_synthetic_loss(loss: losses.BaseMetricLossFunction, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn of a loss over explicit pairs or triplets that takes references."""
    value: Tensor = loss(batch.embeddings, batch.labels, batch.pairs(), batch.references(), batch.reference_labels())
    return value


def triplet_synthetic_loss(loss: losses.TripletMarginLoss, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn of a triplet loss; with `swap`, positives must be rows, as distances from them are looked up."""
    rows = (batch.nodes, batch.node_labels) if loss.swap else (batch.embeddings, batch.labels)
    value: Tensor = loss(*rows, batch.pairs(), batch.references(), batch.reference_labels())
    return value


def joint_tuple_synthetic_loss(loss: losses.BaseMetricLossFunction, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn of a loss over explicit pairs that looks up both ends in one batch."""
    value: Tensor = loss(batch.references(), batch.reference_labels(), batch.pairs())
    return value


def labelled_synthetic_loss(loss: losses.BaseMetricLossFunction, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn of a proxy or classification loss: synthetic negatives are further samples of their class."""
    embeddings = torch.cat([batch.embeddings, batch.negatives.embeddings])
    value: Tensor = loss(embeddings, torch.cat([batch.labels, batch.negatives.labels]))
    return value


def n_pairs_synthetic_loss(loss: losses.NPairsLoss, batch: SyntheticBatch) -> Tensor:
    """Compute the cross-entropy of every anchor's next positive against its own synthetic negatives."""
    positives, has_positive = next_positive(batch.node_labels, len(batch.labels))
    positive = similarity(loss, batch.embeddings, batch.nodes).gather(1, positives[:, None])[:, 0]
    negative, owner = own_similarity(loss, batch), batch.negatives.anchors
    dtype = compute_dtype(positive, negative)
    positive, negative = positive.to(dtype), negative.to(dtype)
    # logsumexp over the positive and the negatives of each anchor; anchors differ in their number of negatives.
    largest = positive.detach().scatter_reduce(0, owner, negative.detach(), "amax")
    total = (positive - largest).exp().index_add(0, owner, (negative - largest[owner]).exp())
    values, anchors = total.log() + largest - positive, torch.arange(len(positive), device=positive.device)
    if batch.negatives.num_skipped_anchors != 0:  # only the device knows which anchors have no positive
        anchors = has_positive.nonzero()[:, 0]
        values = values[anchors]
    return reduced(loss, batch, values, indices=anchors, reduction_type="element")


def nca_synthetic_loss(loss: losses.NCALoss, batch: SyntheticBatch) -> Tensor:
    """Compute the NCA loss over real positives and own synthetic negatives, which labels alone cannot express."""
    positive = batch.positive_mask()
    rows = positive.any(dim=1).nonzero()[:, 0]
    visible = torch.cat([positive[rows], batch.own_mask(rows)], dim=1)
    scores = loss.softmax_scale * similarity(loss, batch.embeddings, batch.references())[rows]
    log_probability = scores.masked_fill(~visible, float("-inf")).log_softmax(dim=1)[:, : positive.shape[1]]
    values = -log_probability.masked_fill(~positive[rows], float("-inf")).logsumexp(dim=1)
    return reduced(loss, batch, values, indices=rows, reduction_type="element")


def angular_synthetic_loss(loss: losses.AngularLoss, batch: SyntheticBatch) -> Tensor:
    """Compute PML's form of the angular loss with own synthetic negatives, which labels alone cannot express."""
    anchors, positives, _, _ = batch.pairs()
    rows = (within_range(loss, x) for x in (batch.embeddings[anchors], batch.nodes[positives]))
    anchor, positive = (loss.distance.normalize(x) for x in rows)
    tangent = torch.tan(loss.alpha).square().to(anchor.dtype).to(anchor.device)  # PML's is float64, on the host
    exponent = 4 * tangent * (anchor + positive) @ batch.negatives.embeddings.t()
    exponent = exponent - 2 * (1 + tangent) * (anchor * positive).sum(dim=1, keepdim=True)
    values = lmu.logsumexp(exponent, keep_mask=batch.own_mask(anchors), add_one=True)
    return reduced(loss, batch, values, indices=(anchors, positives), reduction_type="pos_pair")


def multiple_synthetic_loss(loss: losses.MultipleLosses, batch: SyntheticBatch) -> Tensor:
    """Compute the weighted sum of the member losses' J_syn."""
    members = loss.losses.items() if loss.is_dict else enumerate(loss.losses)
    terms = [loss.weights[key] * synthetic_loss(member, batch) for key, member in members]
    return torch.stack(terms).sum()


def reduced(loss: losses.BaseMetricLossFunction, batch: SyntheticBatch, values: Tensor, **info: Any) -> Tensor:
    """Apply the loss's regularizer and reducer to its computed values, as PML does."""
    loss_dict = {"loss": {"losses": values, **info}}
    loss.add_embedding_regularization_to_loss_dict(loss_dict, batch.embeddings)
    value: Tensor = loss.reducer(loss_dict, batch.embeddings, batch.labels)
    return value


def similarity(loss: losses.BaseMetricLossFunction, queries: Tensor, references: Tensor) -> Tensor:
    """Compute (Q, R) similarities of (Q, D) and (R, D) by the loss's own distance; larger is more alike."""
    rows = within_range(loss, queries)
    matrix: Tensor = loss.distance(rows, rows if references is queries else within_range(loss, references))
    return matrix if loss.distance.is_inverted else -matrix


def own_similarity(loss: losses.BaseMetricLossFunction, batch: SyntheticBatch) -> Tensor:
    """Compute the (S,) similarities of synthetic negatives to their own anchors."""
    negatives, distance = batch.negatives, loss.distance
    # For other distances PML's pairwise values differ from those of its matrix.
    if type(distance) in (CosineSimilarity, DotProductSimilarity):
        rows = negatives.embeddings.to(compute_dtype(negatives.embeddings))
        anchors = distance.maybe_normalize(within_range(loss, batch.embeddings)).to(rows.dtype)
        values = row_dots(anchors, negatives.anchors, rows)
        if distance.normalize_embeddings:
            values = values / norm_or_floor(rows, distance.p)
        return values if distance.power == 1 else values**distance.power
    return similarity(loss, batch.embeddings, negatives.embeddings).gather(0, negatives.anchors[None])[0]


def within_range(loss: losses.BaseMetricLossFunction, rows: Tensor) -> Tensor:
    """Shorten (R, D) rows whose squares would overflow, where the loss's distance normalises them anyway."""
    if not loss.distance.normalize_embeddings:
        return rows
    return rows / excess_of(rows.to(compute_dtype(rows))).to(rows.dtype)

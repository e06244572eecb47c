"""N-pairs as the authors of GCA-HNG compute it. PML's version uses only two samples of each class."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import Tensor

from ..utils.validation import check_positive_int

PENALTY = 0.25 * 3e-3  # weight of squared lengths, per sample of a class


class PublishedNPairsLoss(losses.NPairsLoss):
    """N-pairs that compares the first sample of each class, the anchor, with every other sample of it in turn.

    The m-th term is a cross-entropy for each anchor. It compares the similarity to the m-th sample of its class with
    those to the m-th samples of the other classes. All terms are averaged. Similarities are dot products of embeddings
    of any length. A penalty on squared lengths keeps embeddings short.

    Args:
        samples_per_class: M, which scales the published penalty. A batch may hold other numbers of a class.

    Raises:
        TypeError, ValueError: `samples_per_class` is not a positive integer.
    """

    penalizes_synthetic = True  # as published; PML's regularizers count once

    def __init__(self, samples_per_class: int, **kwargs: Any) -> None:
        check_positive_int("samples_per_class", samples_per_class)
        super().__init__(
            distance=DotProductSimilarity(normalize_embeddings=False),
            embedding_regularizer=LpRegularizer(power=2),
            embedding_reg_weight=PENALTY * samples_per_class,
            **kwargs,
        )

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Implement PML's interface. Pairs from a miner are handled as in PML."""
        if indices_tuple is not None or len(labels) == 0:
            found: dict[str, Any] = super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            return found
        _, counts = labels.unique(return_counts=True)
        by_class, first = labels.argsort(stable=True), counts.cumsum(0) - counts
        parts: list[dict[str, Any]] = []
        for m in range(1, int(counts.max())):
            anchors = by_class[first[counts > m]]
            pairs = (anchors, by_class[first[counts > m] + m], anchors[:0], anchors[:0])
            parts.append(super().compute_loss(embeddings, labels, pairs, ref_emb, ref_labels)["loss"])
        if not parts:
            return dict(self.zero_losses())
        joined = {key: torch.cat([part[key] for part in parts]) for key in ("losses", "indices")}
        self.num_pairs = len(joined["indices"])
        return {"loss": {**joined, "reduction_type": "element"}}

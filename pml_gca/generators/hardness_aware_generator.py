"""HDML's generator: Zheng et al., CVPR 2019, https://arxiv.org/abs/1903.05503"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..correlation.blocks import linear
from ..correlation.objective import classification_loss, frozen_classification_loss
from ..utils.dtypes import compute_dtype
from ..utils.norms import length
from ..utils.records import hide_modules_from_records
from ..utils.validation import check_flag, check_learning_rates, check_number
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .interpolation import interpolate, pull_strength
from .planning import on_device, plan_negative_pairs

TERMS = ("reconstruction_loss", "softmax_loss", "auxiliary_classification_loss", "generation_loss")


class HardnessAwareGenerator(BaseGenerator):
    r"""Hardness-aware negatives (HDML): every negative of the batch, pulled toward the anchor by one shared amount.

    $$
    \hat{z}_{ij} = z_i + \frac{d^+ + (d^- - d^+)\,e^{-\alpha/L}}{d^-}\,(z_j - z_i) \text{ if } d^+ < d^-,
    \text{ else } z_j
    $$

    Here d⁺ is the distance of the anchor's next positive, d⁻ that of the negative, and L the level of the metric loss.
    All negatives of a batch are pulled alike, straight, and never nearer than the positive. There is one synthetic
    negative for each anchor and negative sample, up to B²: with proxy and classification losses of many classes they
    take memory. Anchors without a positive have no d⁺; they generate nothing, and are counted.

    With `reembed` a network i, D → 2D → D, maps ẑ to z̃ = i(ẑ), to make it an embedding of the negative's class again.
    It is trained by

    $$J_{gen} = \frac{1}{B} \sum_b \lVert i(z_b) - z_b \rVert^2 + w\,J_{soft}$$

    J_soft is the cross-entropy of z̃ and the negatives' labels under an auxiliary linear classifier. The classifier is
    frozen in J_soft, and learns from the real embeddings. Both terms see detached embeddings. The wrapped loss's
    gradient passes through the network to the embeddings, and does not train the network.

    What differs from the paper: its i maps to features of the backbone, and z̃ is their embedding. The embedding layer
    also learns from synthetic features. Here only embeddings are known. The paper has one negative of each other class
    in an N-pair tuple. It reduces the weight of the metric loss as that of J_syn grows. Its β is 10⁴, for a J_gen of
    another scale.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        alpha: α: how far the metric loss must have fallen before negatives are pulled in. The paper takes 90 for
            N-pairs.
        reembed: whether to map the pulled negatives through the network.
        softmax_weight: w of J_soft; only with `reembed`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = HardnessAwareGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 4 negatives each
        torch.Size([24, 8])
    """

    stat_names = (*BaseGenerator.stat_names, *TERMS)

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        alpha: float = 90.0,
        reembed: bool = False,
        softmax_weight: float = 0.5,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_number("alpha", alpha)
        check_flag("reembed", reembed)
        check_number("softmax_weight", softmax_weight)
        self.alpha = alpha
        self.reembed = reembed
        self.softmax_weight = softmax_weight
        self.has_objective = reembed
        if reembed:
            hidden = 2 * embedding_size
            self.network = nn.Sequential(
                nn.Linear(embedding_size, hidden), nn.ReLU(), nn.Linear(hidden, embedding_size)
            )
            self.auxiliary_classifier = nn.Linear(embedding_size, num_classes)
            hide_modules_from_records(self)

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Pull every negative sample of the batch toward its anchors; see the class."""
        self.reset_stats()
        self.follow_device(batch.embeddings.device)
        nodes = batch.nodes
        plan = on_device(plan_negative_pairs(batch.labels_on_host(), batch.num_anchors), nodes.device)
        near = length(nodes[: batch.num_anchors] - nodes.index_select(0, plan.positives))
        synthetic = interpolate(
            nodes.index_select(0, plan.anchors),
            nodes.index_select(0, plan.negatives),
            nodes.new_ones(1, 1),
            near.index_select(0, plan.anchors),
            pull_strength(self.alpha, metric_level, nodes.dtype),
        )
        objectives: dict[str, Tensor] = {}
        if self.reembed:
            with torch.autocast(nodes.device.type, enabled=False):
                if self.training and torch.is_grad_enabled():
                    anchors = nodes[: batch.num_anchors]
                    objectives = self._objectives(anchors, batch.anchor_labels, synthetic, plan.labels)
                synthetic = self._reembed_without_learning(synthetic)
        self.observe(num_negatives=len(synthetic), num_skipped_anchors=plan.num_skipped_anchors)
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype), plan.labels, plan.anchors, objectives, plan.num_skipped_anchors
        )

    def largest_value(self, dtype: torch.dtype) -> float:
        """Return the base class's value; less with `reembed`, whose squared errors overflow earlier."""
        if not (self.reembed and self.training):
            return super().largest_value(dtype)
        return math.sqrt(torch.finfo(torch.promote_types(dtype, torch.float32)).max / self.embedding_size) / 4

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return optimizer groups: the network at `lr`, the classifier at `classifier_lr`.

        Without `reembed` it is one group without parameters.
        """
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        if not self.reembed:
            return super().parameter_groups(lr)
        return [
            {"params": list(self.network.parameters()), "lr": lr},
            {"params": list(self.auxiliary_classifier.parameters()), "lr": classifier_lr},
        ]

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network; the classifier is trained by a term of its own."""
        return list(self.network.parameters()) if self.reembed else []

    def _reembed_without_learning(self, rows: Tensor) -> Tensor:
        """Return i of (S, D) rows; gradients pass through the network, and do not train it."""
        return self._mapped(rows, {name: parameter.detach() for name, parameter in self.network.named_parameters()})

    def _mapped(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return i of (S, D) rows, computed in a dtype as wide as these."""
        cast = {name: parameter.to(compute_dtype(parameter, rows)) for name, parameter in parameters.items()}
        out: Tensor = functional_call(self.network, cast, (rows.to(next(iter(cast.values())).dtype),))
        return out.to(rows.dtype)

    def _objectives(
        self, anchors: Tensor, anchor_labels: Tensor, candidates: Tensor, candidate_labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms to add to the loss; none reaches the embeddings."""
        classifier = self.auxiliary_classifier
        real, pulled = anchors.detach(), candidates.detach()
        made = self._mapped(torch.cat([real, pulled]), dict(self.network.named_parameters()))
        # Divided first: a sum over the batch may overflow where the mean does not.
        missed = (made[: len(real)] - real) / math.sqrt(max(len(real), 1))
        reconstruction = missed.square().sum()
        weight, bias = (x.to(compute_dtype(x, real)) for x in classifier.parameters())
        soft = frozen_classification_loss(made[len(real) :], weight, bias, candidate_labels)
        auxiliary = classification_loss(linear(classifier, real.to(weight.dtype)), anchor_labels)
        generation = reconstruction + self.softmax_weight * soft
        self.observe(**dict(zip(TERMS, (reconstruction, soft, auxiliary, generation), strict=True)))
        return {"generation_loss": generation, "auxiliary_classification_loss": auxiliary}

"""GCA-HNG's interpolation with coefficients that nothing has learned; https://arxiv.org/abs/2411.13145"""

import math

import torch
from torch import Tensor

from ..utils.validation import check_choice, check_number
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .interpolation import MERGINGS, class_weights, plan_candidates, pull_strength
from .synthesis import synthesize


class InterpolationGenerator(BaseGenerator):
    """What controls of GCA-HNG share: its interpolation and merging, with coefficients from elsewhere.

    A subclass implements `coefficients_of_edges`. Anchors without a positive generate nothing, and are counted.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        merging: how the candidates of a class become one negative: ``"random"``, ``"mean"`` or ``"hardest"``, as for
            `GlobalCorrelationGenerator`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        alpha: float = 5.0,
        merging: str = "random",
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_number("alpha", alpha)
        check_choice("merging", merging, MERGINGS)
        self.alpha = alpha
        self.merging = merging

    def coefficients_of_edges(self, num_edges: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """λ: (E, D) in [0, 1], of undirected edges; of ``dtype``, or of bool for 0 and 1."""
        raise NotImplementedError

    def generate(
        self,
        batch: Batch,
        metric_level: Tensor | float = math.inf,
        *,
        draws: Tensor | None = None,
        coefficients: Tensor | None = None,
    ) -> SyntheticNegatives:
        """Interpolate and merge; see the class.

        ``draws`` (A, N) in [0, 1] take the place of the random ones that merge, and ``coefficients`` (E, D), of edges
        as `edge_pairs` lists them, that of the subclass's.
        """
        self.reset_stats()
        nodes = batch.nodes
        dtype, device, num_nodes = nodes.dtype, nodes.device, len(nodes)
        plan = plan_candidates(batch.labels_on_host(), batch.num_anchors)
        num_skipped = int((~plan.has_positive).sum())
        plan = plan.to(device)
        if draws is None:
            draws = torch.rand(batch.num_anchors, num_nodes, dtype=dtype, device=device)
        if coefficients is None:
            coefficients = self.coefficients_of_edges(num_nodes * (num_nodes + 1) // 2, dtype, device)
        synthetic, _ = synthesize(
            nodes,
            coefficients,
            plan,
            class_weights(self.merging, nodes, plan, draws),
            pull_strength(self.alpha, metric_level, dtype),
        )
        if self.collect_stats:
            self.num_negatives, self.num_skipped_anchors = len(synthetic), num_skipped
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype),
            plan.synthetic_labels,
            plan.synthetic_anchors,
            num_skipped_anchors=num_skipped,
        )

"""Interpolation and merging, shared by GCA-HNG and its controls. https://arxiv.org/abs/2411.13145"""

import math

import torch
from torch import Tensor

from ..correlation.correlations import Correlations
from ..correlation.edge_list import EdgeList
from ..utils.validation import check_choice, check_level, check_number
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .interpolation import pull_strength
from .merging import MERGINGS, class_weights
from .planning import CandidatePlan, on_device, plan_candidates
from .synthesis import synthesize


class InterpolationGenerator(BaseGenerator):
    """Pull the samples of each other class toward each anchor, by coefficients λ, and merge them into one negative.

    A subclass implements `coefficients_of_edges`; one with a graph also `propagate`, and one that learns `objectives`.
    Anchors without a positive generate nothing, and are counted.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        merging: how the candidates of a class become one negative: `"random"`, `"mean"` or `"hardest"`, as for
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

    def generate(
        self,
        batch: Batch,
        metric_level: Tensor | float = math.inf,
        *,
        draws: Tensor | None = None,
        coefficients: Tensor | None = None,
    ) -> SyntheticNegatives:
        """Interpolate and merge: section 3.4 of the paper.

        Args:
            batch: N nodes, of which the first A are anchors.
            metric_level: L, which decides how far negatives are pulled.
            draws: (A, N) in [0, 1], instead of the random ones that merge candidates.
            coefficients: (E, D), of the edges of the graph, instead of those of `coefficients_of_edges`; of all edges,
                as `edge_pairs` lists them, without a graph.
        """
        if batch.phase != "generation":  # the second step of an iteration keeps the statistics of the first
            self.reset_stats()
        self.follow_device(batch.embeddings.device)
        nodes = batch.nodes
        graph = self.propagate(batch, nodes)  # before the host waits for the labels
        plan = on_device(plan_candidates(batch.labels_on_host(), batch.num_anchors), nodes.device)
        if draws is None:
            draws = torch.rand(batch.num_anchors, len(nodes), dtype=nodes.dtype, device=nodes.device)
        edges = EdgeList(len(nodes), num_memory=batch.num_memory) if graph is None else graph.edges
        if coefficients is None:
            coefficients = self.coefficients_of_edges(edges.num_edges, nodes, graph)
        made = self.negatives(batch, graph, edges, nodes, coefficients, plan, draws, metric_level)
        synthetic, weights, objectives = made
        self.observe(num_negatives=len(synthetic), num_skipped_anchors=plan.num_skipped_anchors)
        self.record(nodes, coefficients, synthetic, weights, plan)
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype),
            plan.synthetic_labels,
            plan.synthetic_anchors,
            objectives,
            plan.num_skipped_anchors,
        )

    def negatives(
        self,
        batch: Batch,
        graph: Correlations | None,
        edges: EdgeList,
        nodes: Tensor,
        coefficients: Tensor,
        plan: CandidatePlan,
        draws: Tensor,
        metric_level: Tensor | float,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the (S, D) negatives, the (A, N) weights that merged them, and what `objectives` returns.

        Arguments are those of `generate` and `objectives`.
        """
        weights = class_weights(self.merging, nodes, plan, draws)
        strength = pull_strength(self.alpha, metric_level, nodes.dtype)
        chunk = None if graph is None else graph.edge_chunk_size
        synthetic, learned = synthesize(nodes, coefficients, plan, weights, strength, chunk, edges=edges)
        objectives: dict[str, Tensor] = {}
        if self.training and torch.is_grad_enabled():
            objectives = self.objectives(batch, graph, coefficients, learned, plan)
        return synthetic, weights, objectives

    def propagate(self, batch: Batch, nodes: Tensor) -> Correlations | None:
        """Return what a graph over the batch says; None without a graph.

        Args:
            batch: N nodes.
            nodes: (N, D), the batch's, in float32 or wider.
        """
        return None

    def coefficients_of_edges(self, num_edges: int, nodes: Tensor, graph: Correlations | None) -> Tensor:
        """Return λ in [0, 1] of the undirected edges: (E, D), of the dtype of `nodes`, or of bool for 0 and 1.

        Args:
            num_edges: E.
            nodes: (N, D), in float32 or wider.
            graph: as from `propagate`.
        """
        raise NotImplementedError

    def objectives(
        self, batch: Batch, graph: Correlations | None, coefficients: Tensor, synthetic: Tensor, plan: CandidatePlan
    ) -> dict[str, Tensor]:
        """Return the terms that the batch wants, to add to the loss; called in training only.

        Args:
            batch: N nodes.
            graph: as from `propagate`.
            coefficients: (E, D), λ.
            synthetic: (S, D), the negatives, whose gradient reaches the coefficients alone.
            plan: which rows the negatives are made of.
        """
        return {}

    def record(
        self, nodes: Tensor, coefficients: Tensor, synthetic: Tensor, weights: Tensor, plan: CandidatePlan
    ) -> None:
        """Observe further statistics; wait for the device only if they are collected for PML's records."""

    def interpolation_strength(self, metric_level: Tensor | float) -> Tensor:
        """Return s = e^{-α/L}, as `pull_strength` does: 1 for an infinite level, 0 for one of 0.

        Raises:
            TypeError, ValueError: the level is no number, or NaN.
        """
        if not isinstance(metric_level, Tensor):
            check_level("metric_level", metric_level)
        return pull_strength(self.alpha, metric_level)

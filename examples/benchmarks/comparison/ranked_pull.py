"""Hardness by rank: negatives are pulled until they rank among the hardest real negatives of their anchor."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pml_gca.correlation.edges import to_dense
from pml_gca.generators import Batch, SyntheticNegatives
from pml_gca.generators.interpolation_generator import InterpolationGenerator
from pml_gca.generators.merging import class_weights
from pml_gca.generators.planning import on_device, plan_candidates

RANK = 0.9
"""The quantile of an anchor's similarities to its real negatives that a pulled negative reaches."""
HALVINGS = 24


class RankedPull(InterpolationGenerator):
    """Mixed into a generator that interpolates: λ only decides which channels of a negative are pulled, not how far.

    The real samples of a class merge into a negative n, and their 1 − λ into a profile p, which is scaled to a mean of
    1. The synthetic negative is n + t p ⊙ (z − n), with the least t at which its cosine similarity to the anchor z
    reaches the quantile `RANK` of those of the anchor's real negatives. A negative that is more similar stays as it is.
    If none reaches it, t is the one at which the first channel has arrived at the anchor.
    """

    def generate(
        self,
        batch: Batch,
        metric_level: Tensor | float = math.inf,
        *,
        draws: Tensor | None = None,
        coefficients: Tensor | None = None,
    ) -> SyntheticNegatives:
        """Pull by rank; the metric level has no influence. Arguments are those of the base class."""
        self.reset_stats()
        nodes = batch.nodes
        graph = self.propagate(batch, nodes)
        plan = on_device(plan_candidates(batch.labels_on_host(), batch.num_anchors), nodes.device)
        if draws is None:
            draws = torch.rand(batch.num_anchors, len(nodes), dtype=nodes.dtype, device=nodes.device)
        weights = class_weights(self.merging, nodes, plan, draws)
        if coefficients is None:
            coefficients = self.coefficients_of_edges(len(nodes) * (len(nodes) + 1) // 2, nodes, graph)
        pulled = 1 - to_dense(coefficients.to(nodes.dtype), len(nodes))[: batch.num_anchors]

        def merged(values: Tensor) -> Tensor:
            rows = (weights[..., None] * values).flatten(0, 1)
            total = nodes.new_zeros(len(plan.synthetic_anchors) + 1, nodes.shape[1])
            return total.index_add(0, plan.slots.flatten(), rows)[:-1]

        anchors, negatives, profile = nodes[plan.synthetic_anchors], merged(nodes), merged(pulled)
        profile = profile / profile.mean(dim=1, keepdim=True).clamp_min(torch.finfo(profile.dtype).tiny)
        targets = real_quantiles(nodes.detach(), batch.labels, batch.num_anchors)[plan.synthetic_anchors]
        extent = least_pull(anchors.detach(), negatives.detach(), profile.detach(), targets)[:, None]
        made = negatives + extent * profile.detach() * (anchors - negatives)
        objectives: dict[str, Tensor] = {}
        if self.training and torch.is_grad_enabled():
            learned = negatives.detach() + extent * profile * (anchors - negatives).detach()
            objectives = self.objectives(batch, graph, coefficients, learned, plan)
        return SyntheticNegatives(
            made.to(batch.embeddings.dtype),
            plan.synthetic_labels,
            plan.synthetic_anchors,
            objectives,
            plan.num_skipped_anchors,
        )


def real_quantiles(nodes: Tensor, labels: Tensor, num_anchors: int) -> Tensor:
    """Return the quantile `RANK` of each anchor's cosine similarities to nodes of other classes: (A,)."""
    directions = F.normalize(nodes)
    similarity = directions[:num_anchors] @ directions.t()
    return similarity.masked_fill(labels[:num_anchors, None] == labels, math.nan).nanquantile(RANK, dim=1)


def least_pull(anchors: Tensor, negatives: Tensor, profile: Tensor, targets: Tensor) -> Tensor:
    """Return t of each negative, (S,), for (S, D) rows and (S,) similarities; see `RankedPull`."""
    low = torch.zeros_like(targets)
    high = profile.amax(dim=1).clamp_min(1.0).reciprocal()
    reached = F.cosine_similarity(anchors, negatives) >= targets
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        there = F.cosine_similarity(anchors, negatives + middle[:, None] * profile * (anchors - negatives)) >= targets
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    return torch.where(reached, 0.0, high)

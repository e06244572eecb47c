"""A graph over the classes of a batch that learns which class each channel of a synthetic class is taken from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from comparison.crossing import Crossing, Pairs
from pml_gca.correlation.propagation import CorrelationPropagation

WIDTH = 128
"""Channels of the graph."""
OBJECTIVES = {"told": 1.0, "adversarial": -1.0}
"""Whether the graph minimises the loss that the network minimises, or maximises it."""


class ClassGraph(nn.Module):
    """λ of pairs of classes: GCA-HNG's graph of one layer and 4 heads, with class means as nodes.

    It is narrowed to `WIDTH` channels, as it would cost more than the backbone at those of the features. With the edge
    e_ab of two classes, and their narrowed means m, λ_ab = σ(W (e_ab ⊙ (m_a − m_b))), centred over the channels before
    σ. Turned round, a pair has 1 − λ: each channel of a new class prefers the same one of both. Centred, no pair takes
    almost all channels from one class.

    Args:
        num_features: F.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.LayerNorm(num_features), nn.Linear(num_features, WIDTH))
        self.propagation = CorrelationPropagation(2, WIDTH, num_layers=1, num_heads=4, dropout=0.0)
        self.widen = nn.Linear(WIDTH, num_features, bias=False)

    def forward(self, means: Tensor, ends: Tensor) -> Tensor:
        """Return λ of the pairs `ends`, (P, 2), of classes with (C, F) means: (P, F) in (0, 1)."""
        nodes = self.narrow(means)
        edges = self.propagation(nodes, torch.arange(len(nodes), device=nodes.device)).dense()
        one, other = ends.unbind(dim=1)
        logits: Tensor = self.widen(edges[one, other] * (nodes[one] - nodes[other]))
        return (logits - logits.mean(dim=1, keepdim=True)).sigmoid()


class LearnedCrossing(Crossing):
    """Synthetic classes whose coins, shared by the samples of a pair of classes, show heads with a learned probability.

    Its gradient is that of the mask, as if λ were the mask (straight through), times −1 for an adversary.

    Args:
        settings: as for `Crossing`; `mask` is one of `OBJECTIVES`.
        num_classes: N.
        num_features: F.
    """

    def __init__(self, settings: Mapping[str, Any], num_classes: int, num_features: int) -> None:
        super().__init__(settings, num_classes)
        self.graph, self.sign = ClassGraph(num_features), OBJECTIVES[self.mask]

    def draw(self, pairs: Pairs, values: Tensor, labels: Tensor) -> Tensor:
        """Return the mask of the crossed rows, (S, F) of 0 and 1, with a gradient to the graph."""
        _, class_of, sizes = labels.unique(return_inverse=True, return_counts=True)
        sums = values.new_zeros(len(sizes), values.shape[1]).index_add(0, class_of, values.detach())
        share = self.graph(sums / sizes[:, None], pairs.ends)
        heads = (torch.rand_like(share) < share).to(share.dtype)
        return (heads + self.sign * (share - share.detach()))[pairs.pair_of]


def make_crossing(settings: Mapping[str, Any], num_classes: int, num_features: int) -> Crossing | None:
    """Return the synthetic classes of a run; None without."""
    if not settings.get("crossed"):
        return None
    if settings.get("mask") in OBJECTIVES:
        return LearnedCrossing(settings, num_classes, num_features)
    return Crossing(settings, num_classes)

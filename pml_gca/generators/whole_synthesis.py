"""Synthetic negatives of a whole batch, all edges at once: the form of `synthesize` for a compiler, which fuses it.

Axis legend as in `generators.interpolation`.
"""

from typing import Any

import torch
from torch import Tensor

from ..correlation.edge_list import EdgeList
from ..correlation.edges import at_ends
from ..utils.norms import length
from .interpolation import pull_ratio


def synthesize_whole(
    edges: EdgeList,
    nodes: Tensor,
    coefficients: Tensor,
    near: Tensor,
    strength: Tensor,
    slots: Tensor,
    weights: Tensor,
    synthetic_anchors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sum up weighted candidates: the negative is z_i + Σ_j w_ij (a_ij + b_ij λ_ij) ⊙ (z_j − z_i).

    Args:
        edges: all edges of the graph, with or without a memory.
        nodes: (N, D), z, in float32 or wider.
        coefficients: (E, D), λ.
        near: (N,), d⁺ of each node.
        strength: s = e^{-α/L}, of the dtype of the nodes.
        slots: (2, E) long, the negative that the candidate of an edge is part of: with the first end as anchor, and
            with the second.
        weights: (2, E), of these candidates.
        synthetic_anchors: (S,) long, S > 0.

    Returns:
        The (S, D) negatives twice, as `synthesize` does.
    """
    first, second = at_ends(nodes, edges)
    apart = second - first
    constants, slopes = pull_ratio(torch.stack(at_ends(near, edges)), length(apart), strength)
    signed = torch.stack([weights[0], -weights[1]])
    constants, slopes = (signed * constants)[..., None], (signed * slopes)[..., None]
    fixed, synthetic = coefficients.detach().to(nodes.dtype), nodes.index_select(0, synthetic_anchors)
    for way in (0, 1):
        synthetic = synthetic.index_add(0, slots[way], (constants[way] + slopes[way] * fixed) * apart)
    learned: Tensor = OfCoefficients.apply(coefficients, synthetic.detach(), apart.detach(), slopes.detach(), slots)
    return synthetic, learned


class OfCoefficients(torch.autograd.Function):
    """Return `value`, whose gradient reaches the coefficients that it was computed from.

    The forward pass is then computed once for the nodes and for the coefficients.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, value: Tensor, apart: Tensor, slopes: Tensor, slots: Tensor) -> Tensor:
        ctx.dtype = coefficients.dtype
        ctx.save_for_backward(apart, slopes, slots)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        apart, slopes, slots = ctx.saved_tensors
        there, back = (slopes[way] * grad.index_select(0, slots[way]) for way in (0, 1))
        return ((there + back) * apart).to(ctx.dtype), None, None, None, None

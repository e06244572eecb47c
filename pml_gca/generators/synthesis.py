"""Synthetic negatives of a whole batch, tile by tile, with the gradient written out.

Axis legend as in `generators.interpolation`. Candidates are (pairs, D) values, B² D for a batch; here they are added
up as they are made, and made again in the backward pass, so that none is kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..correlation.edges import edge_pairs
from ..correlation.tiles import Tile, default_chunk_size, edge_tiles, once, twice
from ..utils.dtypes import compute_dtype
from ..utils.gradients_anew import differentiable_again
from ..utils.norms import are_usual, length, scale_of
from .interpolation import CandidatePlan, positive_distances, pull_ratio


def synthesize(
    nodes: Tensor,
    coefficients: Tensor,
    plan: CandidatePlan,
    weights: Tensor,
    strength: Tensor | float,
    edge_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Interpolate and merge all candidates of a plan; no candidate is kept.

    Args:
        nodes: (N, D).
        coefficients: (E, D), of undirected edges as `edge_pairs` lists them.
        plan: as from `plan_candidates`.
        weights: (A, N), as from `merging_weights`.
        strength: s = e^{-α/L} in [0, 1].
        edge_chunk_size: edges computed at a time; chosen by the device if None.

    Returns:
        The (S, D) synthetic negatives, in float32 or wider, twice: gradients of the first reach the nodes alone, those
        of the second the coefficients alone.
    """
    z = nodes.to(compute_dtype(nodes))
    num_anchors, num_nodes = plan.slots.shape
    if len(plan.synthetic_anchors) == 0:
        return z[:0], coefficients[:0].to(z.dtype)
    first, second = edge_pairs(num_nodes, z.device)
    rest = (num_nodes - num_anchors, num_nodes)  # references: no anchors, but they have edges
    slots = torch.cat([plan.slots, plan.slots.new_full(rest, len(plan.synthetic_anchors))])
    weights = torch.cat([weights.to(z.dtype), weights.new_zeros(rest, dtype=z.dtype)])
    # A pair without a slot adds nothing to some other; not all to the same one, where a GPU's threads would queue.
    has_none = slots == len(plan.synthetic_anchors)
    anywhere = torch.arange(slots.numel(), device=z.device).view_as(slots) % len(plan.synthetic_anchors)
    slots, weights = torch.where(has_none, anywhere, slots), weights.masked_fill(has_none, 0.0)
    near = torch.cat([positive_distances(z, plan), z.new_zeros(num_nodes - num_anchors)])
    by_edge = [torch.stack([x[first, second], x[second, first]]) for x in (slots, weights)]
    if not isinstance(strength, Tensor):
        strength = torch.tensor(strength, device="cpu")  # which needs no copy to take part
    chunk = edge_chunk_size or default_chunk_size(z.shape[1], z.device)
    for_nodes, for_coefficients = Synthesis.apply(
        edge_tiles(num_nodes, chunk), z, coefficients, near, strength.to(z.dtype), *by_edge, plan.synthetic_anchors
    )
    return for_nodes, for_coefficients


def plain_synthesis(ctx: Any) -> Any:
    """See `Synthesis`."""
    nodes, coefficients, near, strength, slots, weights, synthetic_anchors, _ = ctx.saved_tensors
    first, second = edge_pairs(len(nodes), nodes.device)

    def merged(z: Tensor, learned: Tensor, near: Tensor) -> Tensor:
        total = z.index_select(0, synthetic_anchors)
        for way, (start, end) in enumerate(((first, second), (second, first))):
            apart, d = z[end] - z[start], near[start]
            pullable = d < length(apart.detach())
            far = length(torch.where(pullable[:, None], apart, 1.0))  # no gradient of a distance of 0
            constant, slope = pull_ratio(torch.where(pullable, d, far), far, strength)
            ratio = constant[:, None] + slope[:, None] * learned.to(z.dtype)
            total = total.index_add(0, slots[way], weights[way][:, None] * ratio * apart)
        return total

    def synthesis(nodes: Tensor, coefficients: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        return merged(nodes, coefficients.detach(), near), merged(nodes.detach(), coefficients, near.detach())

    return synthesis, {1: nodes, 2: coefficients, 3: near}


class Synthesis(torch.autograd.Function):
    """Sums of weighted candidates, tile by tile, with the gradient written out; see `synthesize`.

    With the weights of a negative summing to 1, it is z_i + Σ_j w_ij (a_ij + b_ij λ_ij) ⊙ (z_j − z_i).
    """

    @staticmethod
    def forward(
        ctx: Any,
        tiles: Sequence[Tile],
        nodes: Tensor,
        coefficients: Tensor,
        near: Tensor,
        strength: Tensor,
        slots: Tensor,
        weights: Tensor,
        synthetic_anchors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        synthetic = nodes.index_select(0, synthetic_anchors)
        lengths = scale_of(nodes)
        z, d, scale = twice(nodes), twice(near), twice(lengths)
        for tile in tiles:
            pull = Pull(tile, z, d, scale, coefficients, strength)
            scaled = weights[:, tile.rows].view_as(pull.near)
            constant, slope = ((scaled * x)[..., None] for x in (pull.constant, pull.slope))
            for way, sign in enumerate((1, -1)):
                change = torch.addcmul(constant[way], slope[way], pull.coefficients).mul_(pull.apart)
                synthetic.index_add_(0, slots[way, tile.rows], change.flatten(0, 1), alpha=sign)
        ctx.tiles = tiles
        ctx.save_for_backward(nodes, coefficients, near, strength, slots, weights, synthetic_anchors, lengths)
        ctx.set_materialize_grads(False)
        return synthetic, synthetic.view_as(synthetic)

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_synthesis)
    def backward(ctx: Any, for_nodes: Tensor | None, for_coefficients: Tensor | None) -> tuple[Tensor | None, ...]:
        nodes, coefficients, near, strength, slots, weights, synthetic_anchors, lengths = ctx.saved_tensors
        z, d, scale = twice(nodes), twice(near), twice(lengths)
        grad_z, grad_d = torch.zeros_like(z), torch.zeros_like(d)
        grad_coefficients = coefficients.new_empty(coefficients.shape if for_coefficients is not None else 0)
        for tile in ctx.tiles:
            pull = Pull(tile, z, d, scale, coefficients, strength)
            rows = [slots[way, tile.rows] for way in (0, 1)]
            scales = weights[:, tile.rows].view_as(pull.near)[..., None]
            if for_coefficients is not None:
                there, back = (tile.box(for_coefficients.index_select(0, r)) for r in rows)
                slope = scales * pull.slope[..., None]
                there.mul_(slope[0]).addcmul_(back, slope[1], value=-1)
                grad_coefficients[tile.rows] = (there * pull.apart).flatten(0, 1)
            if for_nodes is not None:
                there, back = (
                    tile.box(for_nodes.index_select(0, r)).mul_(w) for r, w in zip(rows, scales, strict=True)
                )
                apart = pull.backward((there, back), grad_d)
                tile.add_to_second(grad_z, apart)
                tile.add_to_first(grad_z, apart.neg_())
        grad_nodes = grad_near = None
        if for_nodes is not None:
            grad_nodes, grad_near = once(grad_z).index_add_(0, synthetic_anchors, for_nodes), once(grad_d)
        for_edges = None if for_coefficients is None else grad_coefficients
        return None, grad_nodes, for_edges, grad_near, None, None, None, None


class Pull:
    """What pulls the candidates of one tile: each edge's second end toward its first, and the other way round."""

    def __init__(
        self, tile: Tile, nodes: Tensor, near: Tensor, scale: Tensor, coefficients: Tensor, strength: Tensor
    ) -> None:
        self.tile, self.strength = tile, strength
        self.coefficients = tile.box(coefficients[tile.rows]).to(nodes.dtype)
        self.apart = tile.second(nodes) - tile.first(nodes)
        self.far = torch.linalg.vector_norm(self.apart, dim=2)
        if not are_usual(self.far):
            common = torch.maximum(tile.second(scale), tile.first(scale))
            self.far = torch.linalg.vector_norm(self.apart / common, dim=2).mul_(common[..., 0])
        self.near = torch.stack([tile.first(near).expand_as(self.far), tile.second(near)])
        self.constant, self.slope = pull_ratio(self.near, self.far, strength)

    def backward(self, grads: tuple[Tensor, Tensor], near_grads: Tensor) -> Tensor:
        """Gradient of z_j − z_i, of those of the two ways' candidates; that of d⁺ is added to ``near_grads``."""
        direction = self.apart / self.far.where(self.far > 0, 1.0)[..., None]
        total, far_grad = torch.zeros_like(self.apart), torch.zeros_like(self.far)
        for way, (grad, sign) in enumerate(zip(grads, (1, -1), strict=True)):
            constant, slope = self.constant[way], self.slope[way]
            along = grad * direction
            by_constant = along.sum(dim=2) - self.strength * (along.mul_(self.coefficients)).sum(dim=2)
            by_constant = torch.where(self.near[way] < self.far, by_constant * sign, 0.0)
            add = self.tile.add_to_second if way else self.tile.add_to_first
            add(near_grads, by_constant)
            far_grad -= by_constant * constant
            total.addcmul_(torch.addcmul(constant[..., None], slope[..., None], self.coefficients), grad, value=sign)
        return total.addcmul_(far_grad[..., None], direction)

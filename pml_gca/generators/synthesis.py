"""Synthetic negatives of a whole batch, tile by tile, with the gradient written out.

Axis legend as in `generators.interpolation`. All candidates of a batch would take B² D values. Here they are added up
as they are made, and recomputed in the backward pass, so none is kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..correlation.edge_list import EdgeList
from ..correlation.tiles import SecondEnds, Tile, default_chunk_size
from ..utils.norms import are_usual, length, scale_of
from ..utils.recompute_gradients import differentiate_plain
from .interpolation import positive_distances, pull_ratio
from .planning import CandidatePlan
from .whole_synthesis import synthesize_whole


def synthesize(
    nodes: Tensor,
    coefficients: Tensor,
    plan: CandidatePlan,
    weights: Tensor,
    strength: Tensor | float,
    edge_chunk_size: int | None = None,
    *,
    edges: EdgeList | None = None,
) -> tuple[Tensor, Tensor]:
    """Interpolate and merge all candidates of a plan, and keep no candidate.

    Args:
        nodes: (N, D).
        coefficients: (E, D), of the listed edges.
        plan: as from `plan_candidates`.
        weights: (A, N), as from `merging_weights`.
        strength: s = e^{-α/L} in [0, 1].
        edge_chunk_size: edges computed at a time; chosen by the device if None.
        edges: the list of edges; all by default.

    Returns:
        The (S, D) synthetic negatives, in float32 or wider, twice. Gradients of the first reach the nodes alone, those
        of the second the coefficients alone.
    """
    z = nodes.to(torch.promote_types(nodes.dtype, torch.float32))
    num_anchors, num_nodes = plan.slots.shape
    if len(plan.synthetic_anchors) == 0:
        return z[:0], coefficients[:0].to(z.dtype)
    edges = edges or EdgeList(num_nodes)
    first, second = edges.pairs(z.device)
    start, end = torch.stack([first, second]), torch.stack([second, first])  # both ways
    anchors = start.clamp_max(num_anchors - 1)
    slots, weights = plan.slots[anchors, end], weights.to(z.dtype)[anchors, end]
    # References are no anchors, but have edges. Spread zero-weight pairs over all slots to avoid contention of atomics.
    has_none = (start >= num_anchors) | (slots == len(plan.synthetic_anchors))
    anywhere = torch.arange(slots.numel(), device=z.device).view_as(slots) % len(plan.synthetic_anchors)
    by_edge = torch.where(has_none, anywhere, slots), weights.masked_fill(has_none, 0.0)
    near = torch.cat([positive_distances(z, plan), z.new_zeros(num_nodes - num_anchors)])
    if not isinstance(strength, Tensor):
        strength = torch.tensor(strength, device="cpu")  # on the host: it takes part without a copy
    strength = strength.to(z.dtype)
    if torch.compiler.is_compiling():  # a compiler fuses operations and plans memory itself
        return synthesize_whole(edges, z, coefficients, near, strength, *by_edge, plan.synthetic_anchors)
    chunk, lengths = edge_chunk_size or default_chunk_size(z.shape[1], z.device), scale_of(z)
    for_nodes, for_coefficients = Synthesis.apply(
        edges, chunk, z, coefficients, near, strength, *by_edge, plan.synthetic_anchors, lengths
    )
    return for_nodes, for_coefficients


class Synthesis(torch.autograd.Function):
    """Sum up weighted candidates, tile by tile; see `synthesize`.

    The weights of a negative sum to 1, so it is z_i + Σ_j w_ij (a_ij + b_ij λ_ij) ⊙ (z_j − z_i), with `pull_ratio`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        edges: EdgeList,
        chunk: int,
        nodes: Tensor,
        coefficients: Tensor,
        near: Tensor,
        strength: Tensor,
        slots: Tensor,
        weights: Tensor,
        synthetic_anchors: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        anchors = nodes.index_select(0, synthetic_anchors)
        synthetic = anchors if edges.processes is None else torch.zeros_like(anchors)
        pull = Pull(edges, nodes, coefficients, near, strength, lengths)
        for tile in edges.tiles(chunk):
            pull.start(tile)
            scaled = weights[:, tile.rows].view_as(pull.near)
            constant, slope = ((scaled * x)[..., None] for x in (pull.constant, pull.slope))
            for way, sign in enumerate((1, -1)):
                change = torch.addcmul(constant[way], slope[way], pull.coefficients).mul_(pull.apart)
                synthetic.index_add_(0, slots[way, tile.rows], change.flatten(0, 1), alpha=sign)
        if edges.processes is not None:
            synthetic = anchors + edges.total(synthetic)[0]
        ctx.edges, ctx.tiles = edges, edges.tiles(chunk)
        ctx.save_for_backward(nodes, coefficients, near, strength, slots, weights, synthetic_anchors, lengths)
        ctx.set_materialize_grads(False)
        return synthetic, synthetic.view_as(synthetic)

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, for_nodes: Tensor | None, for_coefficients: Tensor | None) -> tuple[Tensor | None, ...]:
        nodes, coefficients, near, strength, slots, weights, synthetic_anchors, lengths = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain, inputs = Synthesis.plain(ctx)
            return differentiate_plain(ctx, plain, inputs, [for_nodes, for_coefficients])
        pull = Pull(ctx.edges, nodes, coefficients, near, strength, lengths)
        grad_nodes, grad_near = torch.zeros_like(nodes), torch.zeros_like(near)
        grad_coefficients = coefficients.new_empty(coefficients.shape) if for_coefficients is not None else None
        at_second, near_at_second = SecondEnds(grad_nodes), SecondEnds(grad_near)
        for tile in ctx.tiles:
            pull.start(tile)
            rows = [slots[way, tile.rows] for way in (0, 1)]
            scales = weights[:, tile.rows].view_as(pull.near)
            if for_coefficients is not None and grad_coefficients is not None:
                there, back = (for_coefficients.index_select(0, r).view(*tile.shape, -1) for r in rows)
                slope = (scales * pull.slope)[..., None]
                there.mul_(slope[0]).addcmul_(back, slope[1], value=-1)
                torch.mul(there, pull.apart, out=grad_coefficients[tile.rows].view_as(there))
            if for_nodes is not None:
                grads = [for_nodes.index_select(0, r).view(*tile.shape, -1) for r in rows]
                apart = pull.backward(grads, scales, grad_near, near_at_second, at_second.room(tile))
                grad_nodes[tile.nodes].sub_(apart.sum(dim=0))
                at_second.add(grad_nodes)
        if for_nodes is None:
            return None, None, None, grad_coefficients, *[None] * 6
        grad_nodes, grad_near = ctx.edges.total(grad_nodes, grad_near)
        grad_nodes.index_add_(0, synthetic_anchors, for_nodes)
        return None, None, grad_nodes, grad_coefficients, grad_near, *[None] * 5

    @staticmethod
    def plain(ctx: Any) -> Any:
        """Return a form of `forward` that autograd can differentiate, and its inputs; see `differentiate_plain`."""
        nodes, coefficients, near, strength, slots, weights, synthetic_anchors, _ = ctx.saved_tensors
        edges: EdgeList = ctx.edges
        first, second = edges.pairs(nodes.device)

        def merged(z: Tensor, learned: Tensor, near: Tensor) -> Tensor:
            anchors = z.index_select(0, synthetic_anchors)
            total = anchors if edges.processes is None else torch.zeros_like(anchors)
            z, near = edges.enter(z, near)
            for way, (start, end) in enumerate(((first, second), (second, first))):
                apart, d = z[end] - z[start], near[start]
                pullable = d < length(apart.detach())
                far = length(torch.where(pullable[:, None], apart, 1.0))  # no gradient of a distance of 0
                constant, slope = pull_ratio(torch.where(pullable, d, far), far, strength)
                ratio = constant[:, None] + slope[:, None] * learned.to(z.dtype)
                total = total.index_add(0, slots[way], weights[way][:, None] * ratio * apart)
            return total if edges.processes is None else anchors + edges.leave(total)[0]

        def synthesis(nodes: Tensor, coefficients: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
            return merged(nodes, coefficients.detach(), near), merged(nodes.detach(), coefficients, near.detach())

        return synthesis, {2: nodes, 3: coefficients, 4: near}


class Pull:
    """The pull of candidates, tile by tile: each edge's second end toward its first, and the other way round.

    Args:
        edges: the list of edges.
        nodes: (N, D), z.
        coefficients: (E, D), λ.
        near: (N,), d⁺ of each node.
        strength: s = e^{-α/L}.
        lengths: (N, 1), as from `scale_of`.
    """

    def __init__(
        self, edges: EdgeList, nodes: Tensor, coefficients: Tensor, near: Tensor, strength: Tensor, lengths: Tensor
    ) -> None:
        self.ends, self.all_coefficients, self.strength = (nodes, near, lengths), coefficients, strength
        self.turned = [edges.turned(x) for x in self.ends]

    def start(self, tile: Tile) -> None:
        """Compute z_j − z_i, d⁻, and a and b of `pull_ratio` both ways, of the edges of `tile`."""
        self.tile = tile
        z_i, near_i, length_i = (x[tile.nodes] for x in self.ends)
        z_j, near_j, length_j = (x[tile.offsets, tile.nodes] for x in self.turned)
        self.coefficients = self.all_coefficients[tile.rows].to(z_i.dtype).view(*tile.shape, -1)
        self.apart = torch.sub(z_j, z_i, out=tile.box(z_i))
        self.far = torch.linalg.vector_norm(self.apart, dim=2)
        if not are_usual(self.far):
            common = torch.maximum(length_j, length_i)
            self.far = torch.linalg.vector_norm(self.apart / common, dim=2).mul_(common[..., 0])
        self.near = torch.stack([near_i.expand_as(self.far), near_j])
        self.constant, self.slope = pull_ratio(self.near, self.far, self.strength)

    def backward(
        self, grads: Sequence[Tensor], scales: Tensor, near_grads: Tensor, near_at_second: SecondEnds, out: Tensor
    ) -> Tensor:
        """Return the gradient of z_j − z_i, in `out`; add that of d⁺ to `near_grads`.

        Args:
            grads: (offsets, first ends, D) each, of the negatives that the candidates of both ways are part of.
            scales: (2, offsets, first ends), the weights of these candidates.
            near_grads: (N,).
            near_at_second: with room for values like these.
            out: (offsets, first ends, D).
        """
        direction = self.apart / self.far.where(self.far > 0, 1.0)[..., None]
        constants, slopes = ((x * scales)[..., None] for x in (self.constant, self.slope))
        far_grad = torch.zeros_like(self.far)
        for way, (grad, sign) in enumerate(zip(grads, (1, -1), strict=True)):
            along = grad * direction
            by_constant = along.sum(dim=2) - self.strength * (along.mul_(self.coefficients)).sum(dim=2)
            by_constant *= sign * scales[way]
            by_constant = torch.where(self.near[way] < self.far, by_constant, 0.0)
            if way:
                near_at_second.room(self.tile).copy_(by_constant)
                near_at_second.add(near_grads)
            else:
                near_grads[self.tile.nodes].add_(by_constant.sum(dim=0))
            far_grad -= by_constant * self.constant[way]
            ratio = torch.addcmul(constants[way], slopes[way], self.coefficients)
            if way:
                out.addcmul_(ratio, grad, value=-1)
            else:
                torch.mul(ratio, grad, out=out)
        return out.addcmul_(far_grad[..., None], direction)

"""From nodes to edges, and through the edge MLP."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.gradients_anew import differentiable_again
from ..edges import at_ends, edge_pairs
from ..tiles import Tile, once, twice
from .rows import (
    NORM_EPS,
    EdgeRows,
    PostNorm,
    SweepPlan,
    add_product,
    plain_edges,
    plain_post_norm,
    without_autocast,
)


def plain_update(ctx: Any) -> Any:
    """See `EdgeUpdate`."""
    *inputs, _, _, _ = ctx.saved_tensors
    mask = inputs.pop(6)
    dtype, num_nodes = ctx.plan.matmul_dtype, len(inputs[3])
    pairs = edge_pairs(num_nodes, inputs[0].device)

    def update(*given: Any) -> Tensor:
        kept, in_weight, in_bias, folded, offset, values, norm_weight, norm_bias, w1, b1, w2, b2 = given
        edges = plain_edges(kept, in_weight, in_bias)
        (folded_i, folded_j), (offset_i, offset_j), ends = (at_ends(x, pairs) for x in (folded, offset, values))
        score = ((edges * (folded_i - folded_j)).sum(dim=1) + (offset_i - offset_j)) / math.sqrt(edges.shape[1])
        weights = torch.stack([score.sigmoid(), (-score).sigmoid()]) * (1.0 if mask is None else mask)
        attended = sum((w[:, None] * value for w, value in zip(weights, ends, strict=True)), start=edges)
        t = plain_post_norm(attended, norm_weight, norm_bias)
        hidden = F.gelu(F.linear(t.to(dtype), w1.to(dtype), b1.to(dtype)))
        hidden = F.layer_norm(hidden, hidden.shape[1:], None, None, NORM_EPS)
        return t + b2 + (hidden @ w2.to(dtype).t()).to(t.dtype)

    return update, dict(zip((1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13), inputs, strict=True))


class EdgeUpdate(torch.autograd.Function):
    r"""The edge block up to its last post-norm: t = norm(attended + e), MLP(t) + t, both (E, D).

    ``folded``, ``offset`` and ``values`` are u, c and V g of the nodes (see ``EdgeBlock.attend``); ``mask`` (2, E), if
    any, scales the attention to either end. ``w2`` and ``b2`` include the MLP's LayerNorm's scale and shift.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: SweepPlan,
        kept: Tensor,
        in_weight: Tensor | None,
        in_bias: Tensor | None,
        folded: Tensor,
        offset: Tensor,
        values: Tensor,
        mask: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        edges = EdgeRows(kept, in_weight, in_bias)
        ends = [twice(x) for x in (folded, offset, values)]
        dtype = plan.matmul_dtype
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        out = kept.new_empty(plan.num_edges, folded.shape[1])
        hidden, normed = (plan.room_for_hidden(kept, len(v1)) for _ in range(2))
        spread = kept.new_empty(plan.num_edges, 1) if plan.keep_hidden else None
        for tile in plan.tiles:
            attended = Attended(tile, edges(tile), ends, mask)
            t = PostNorm(attended.out, norm_weight, norm_bias).out
            before = torch.addmm(c1, t.to(dtype), v1.t(), out=plan.part(hidden, tile))
            after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            if normed is not None and spread is not None:
                normed[tile.rows], spread[tile.rows] = after, rstd
            torch.add(t, b2, out=out[tile.rows])
            add_product(out[tile.rows], after, v2.t())
            ctx.statistics_dtype = rstd.dtype  # of half-precision rows, devices differ in it
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        saved = (kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2, b2)
        ctx.save_for_backward(*saved, hidden, normed, spread)
        return out

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_update)
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 14
        plan: SweepPlan = ctx.plan
        wanted, dtype = plan.gradient_pass, plan.matmul_dtype
        *saved, _, hidden, normed, spread = ctx.saved_tensors
        kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2 = saved
        edges = EdgeRows(kept, in_weight, in_bias)
        edges.start_backward(wanted)
        want_edges = ctx.needs_input_grad[1] and (wanted.to_embeddings or not edges.is_first)
        ends = [twice(x) for x in (folded, offset, values)]
        end_grads = [torch.zeros_like(x) for x in ends]
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        norm_sums = [torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)] if wanted.to_parameters else None
        grad_w1, grad_b1, grad_w2, grad_b2 = (kept.new_zeros(x) for x in (w1.shape, b1.shape, w2.shape, (w2.shape[0],)))
        for tile in plan.tiles:
            attended = Attended(tile, edges(tile), ends, mask)
            norm = PostNorm(attended.out, norm_weight, norm_bias)
            t = norm.out.to(dtype)
            if plan.keep_hidden:
                before, after, rstd = (x[tile.rows] for x in (hidden, normed, spread))
            else:
                before = torch.addmm(c1, t, v1.t())
                after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            out_grad = grad[tile.rows]
            # The norm's spread scales its gradient: scaled rows here are fewer than hidden channels there.
            g = (out_grad * rstd).to(dtype) @ v2
            one = torch.ones_like(rstd, dtype=ctx.statistics_dtype)
            zero = torch.zeros_like(one)
            g, _, _ = torch.ops.aten.native_layer_norm_backward(
                g, after, (len(v1),), zero, one, None, None, [True, False, False]
            )
            g = torch.ops.aten.gelu_backward(g, before)
            if wanted.to_parameters:
                add_product(grad_w2, out_grad.t().to(dtype), after)
                grad_b2 += out_grad.sum(dim=0)
                add_product(grad_w1, g.t(), t)
                grad_b1 += g.sum(dim=0)
            t_grad = torch.addmm(out_grad, g, v1) if g.dtype == grad.dtype else out_grad + g @ v1
            edge_grad = attended.backward(norm.backward(t_grad, norm_sums), end_grads)
            if want_edges:
                edges.backward(tile, edge_grad)
        grads = edges.gradients() if want_edges else (None, None, None)
        own = [*(norm_sums or ()), grad_w1, grad_b1, grad_w2, grad_b2] if wanted.to_parameters else [None] * 6
        return None, *grads, *(once(x) for x in end_grads), None, *own


class Attended:
    """Edges plus their attention to two end nodes, for one tile, and the gradient."""

    def __init__(self, tile: Tile, edges: Tensor, ends: list[Tensor], mask: Tensor | None) -> None:
        self.tile, self.ends = tile, ends
        folded, offset, values = ends
        self.edges = tile.box(edges)
        self.scale = 1 / math.sqrt(edges.shape[1])
        self.between = tile.first(folded) - tile.second(folded)
        score = (self.edges * self.between).sum(dim=2) + (tile.first(offset) - tile.second(offset))
        score = score * self.scale
        self.attention = [torch.sigmoid(score), torch.sigmoid(-score)]
        self.mask = [tile.box(m[tile.rows]) for m in mask] if mask is not None else None
        self.weights = self.attention
        if self.mask is not None:
            self.weights = [a * m for a, m in zip(self.attention, self.mask, strict=True)]
        out = torch.addcmul(self.edges, self.weights[0][..., None], tile.first(values))
        self.out = out.addcmul_(self.weights[1][..., None], tile.second(values)).flatten(0, 1)

    def backward(self, grad: Tensor, end_grads: list[Tensor]) -> Tensor:
        """Gradient of the edges, (R, D); those of the ends are added to ``end_grads``."""
        tile, (folded, offset, values) = self.tile, end_grads
        box = tile.box(grad)
        tile.add_to_first(values, self.weights[0][..., None] * box)
        tile.add_to_second(values, self.weights[1][..., None] * box)
        by_end = [(box * end).sum(dim=2) for end in (tile.first(self.ends[2]), tile.second(self.ends[2]))]
        if self.mask is not None:
            by_end = [g * m for g, m in zip(by_end, self.mask, strict=True)]
        score = (by_end[0] - by_end[1]) * self.attention[0] * self.attention[1] * self.scale
        tile.add_to_first(offset, score)
        tile.add_to_second(offset, -score)
        pull = score[..., None] * self.edges
        tile.add_to_first(folded, pull)
        tile.add_to_second(folded, pull.neg_())
        return torch.addcmul(box, score[..., None], self.between).flatten(0, 1)

"""From nodes to edges, and through the edge MLP, tile by tile.

What it buys: the MLP's hidden activations, four times as wide as the edges, are kept twice with ``keep_hidden`` on and
not at all with it off; autograd keeps more than twenty (E, D) tensors of this block a layer.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..edges import at_ends, edge_pairs
from ..tiles import Tile, add_to_second, fold, sums_of, turned
from .rows import NORM_EPS, EdgeRows, EdgeState, PostNorm, SweepPlan, SweptFunction, add_product, plain_post_norm


class EdgeUpdate(SweptFunction):
    """The edge block up to its last post-norm: MLP(t) + t with t = norm(attended + e), (E, D). Section 3.3.

    ``folded``, ``offset`` and ``values`` are u, c and V g of the nodes (see ``EdgeBlock.attend``); ``mask`` (2, E), if
    any, scales the attention to either end. ``w2`` and ``b2`` include the MLP's LayerNorm's scale and shift.
    """

    @staticmethod
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
        ends = Ends(folded, offset, values, mask)
        edges = EdgeRows(EdgeState(kept, in_weight, in_bias))
        dtype = plan.matmul_dtype
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        out = kept.new_empty(plan.num_edges, folded.shape[1])
        hidden = normed = spread = None
        if plan.keep_hidden:  # in one piece each, which allocators like better
            hidden, normed = (kept.new_empty(plan.num_edges, len(v1), dtype=dtype) for _ in range(2))
            spread = kept.new_empty(plan.num_edges, 1)
        for tile in plan.tiles:
            t = PostNorm(ends.attend(tile, edges(tile)), norm_weight, norm_bias).out
            before = torch.addmm(c1, t.to(dtype), v1.t(), out=None if hidden is None else hidden[tile.rows])
            after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            if normed is not None and spread is not None:
                normed[tile.rows], spread[tile.rows] = after, rstd
            torch.add(t, b2, out=out[tile.rows])
            add_product(out[tile.rows], after, v2.t())
            ctx.statistics_dtype = rstd.dtype  # for half-precision rows, it depends on the device
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        saved = (kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2, b2)
        ctx.save_for_backward(*saved, hidden, normed, spread)
        return out

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan: SweepPlan = ctx.plan
        dtype, to_parameters = plan.matmul_dtype, plan.gradient_pass.to_parameters
        *saved, _, hidden, normed, spread = ctx.saved_tensors
        kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2 = saved
        ends = Ends(folded, offset, values, mask)
        ends.start_backward()
        edges = EdgeRows(EdgeState(kept, in_weight, in_bias))
        to_edges = ctx.needs_input_grad[1] and (plan.gradient_pass.to_embeddings or not edges.is_first)
        edges.start_backward(to_parameters)
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        norm_sums = [torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)] if to_parameters else None
        grad_w1, grad_b1, grad_w2, grad_b2 = (kept.new_zeros(x) for x in (w1.shape, b1.shape, w2.shape, (w2.shape[0],)))
        for tile in plan.tiles:
            norm = PostNorm(ends.attend(tile, edges(tile)), norm_weight, norm_bias)
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
            if to_parameters:
                add_product(grad_w2, out_grad.t().to(dtype), after)
                grad_b2 += out_grad.sum(dim=0)
                add_product(grad_w1, g.t(), t)
                grad_b1 += g.sum(dim=0)
            t_grad = torch.addmm(out_grad, g, v1) if g.dtype == grad.dtype else out_grad + g @ v1
            edge_grad = ends.backward(tile, norm.backward(t_grad, norm_sums))
            if to_edges:
                edges.backward(tile, edge_grad)
        of_edges = edges.gradients() if to_edges else (None, None, None)
        own = [*(norm_sums or ()), grad_w1, grad_b1, grad_w2, grad_b2] if to_parameters else [None] * 6
        return None, *of_edges, *(fold(x) for x in ends.grads), None, *own

    @staticmethod
    def plain(ctx: Any) -> tuple[Callable[..., Tensor], dict[int, Tensor | None]]:
        *inputs, _, _, _ = ctx.saved_tensors
        mask = inputs.pop(6)
        dtype, num_nodes = ctx.plan.matmul_dtype, len(inputs[3])
        pairs = edge_pairs(num_nodes, inputs[0].device)

        def update(*given: Any) -> Tensor:
            kept, in_weight, in_bias, folded, offset, values, norm_weight, norm_bias, w1, b1, w2, b2 = given
            edges = EdgeState(kept, in_weight, in_bias).plain()
            (folded_i, folded_j), (offset_i, offset_j), ends = (at_ends(x, pairs) for x in (folded, offset, values))
            score = ((edges * (folded_i - folded_j)).sum(dim=1) + (offset_i - offset_j)) / math.sqrt(edges.shape[1])
            weights = torch.stack([score.sigmoid(), (-score).sigmoid()]) * (1.0 if mask is None else mask)
            attended = sum((w[:, None] * value for w, value in zip(weights, ends, strict=True)), start=edges)
            t = plain_post_norm(attended, norm_weight, norm_bias)
            hidden = F.gelu(F.linear(t.to(dtype), w1.to(dtype), b1.to(dtype)))
            hidden = F.layer_norm(hidden, hidden.shape[1:], None, None, NORM_EPS)
            return t + b2 + (hidden @ w2.to(dtype).t()).to(t.dtype)

        return update, dict(zip((1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13), inputs, strict=True))


class Ends:
    """The end nodes of edges, and the attention of edges to them, tile by tile; and the gradients.

    Arguments as for `EdgeUpdate`: (N, D), (N,), (N, D) and (2, E).
    """

    def __init__(self, folded: Tensor, offset: Tensor, values: Tensor, mask: Tensor | None) -> None:
        self.ends, self.mask = (folded, offset, values), mask
        self.turned = [turned(x) for x in self.ends]
        self.scale = 1 / math.sqrt(folded.shape[1])

    def attend(self, tile: Tile, edges: Tensor) -> Tensor:
        """Return the (R, D) edges plus their attention to their two ends."""
        folded_i, offset_i, value_i = (x[tile.nodes] for x in self.ends)
        folded_j, offset_j, value_j = (x[tile.offsets, tile.nodes] for x in self.turned)
        self.values = value_i, value_j
        self.edges = edges.view(*tile.shape, -1)
        self.between = folded_i - folded_j
        score = (self.edges * self.between).sum(dim=2) + (offset_i - offset_j)
        score = score * self.scale
        self.attention = [torch.sigmoid(score), torch.sigmoid(-score)]
        self.tile_mask = None if self.mask is None else self.mask[:, tile.rows].view(2, *tile.shape)
        self.weights = self.attention
        if self.tile_mask is not None:
            self.weights = [a * m for a, m in zip(self.attention, self.tile_mask, strict=True)]
        out = torch.addcmul(self.edges, self.weights[0][..., None], value_i)
        return out.addcmul_(self.weights[1][..., None], value_j).flatten(0, 1)

    def start_backward(self) -> None:
        """Prepare to collect the gradients of the nodes."""
        self.grads = [sums_of(x) for x in self.ends]

    def backward(self, tile: Tile, grad: Tensor) -> Tensor:
        """Return the gradient of the (R, D) edges of ``tile``, attended last; add those of the nodes."""
        folded, offset, values = self.grads
        box = grad.view(*tile.shape, -1)
        values[tile.nodes] += (self.weights[0][..., None] * box).sum(dim=0)
        add_to_second(values, tile, self.weights[1][..., None] * box)
        by_end = [(box * end).sum(dim=2) for end in self.values]
        if self.tile_mask is not None:
            by_end = [g * m for g, m in zip(by_end, self.tile_mask, strict=True)]
        score = (by_end[0] - by_end[1]) * self.attention[0] * self.attention[1] * self.scale
        offset[tile.nodes] += score.sum(dim=0)
        add_to_second(offset, tile, -score)
        pull = score[..., None] * self.edges
        folded[tile.nodes] += pull.sum(dim=0)
        add_to_second(folded, tile, pull.neg_())
        return torch.addcmul(box, score[..., None], self.between).flatten(0, 1)

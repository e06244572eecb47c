"""From nodes to edges, and through the edge MLP, tile by tile.

What it buys: with `keep_hidden` two hidden activations of the MLP are kept, each as large as four (E, D) tensors; else
none. Autograd would keep about twenty (E, D) tensors of this block a layer.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.recompute_gradients import differentiate_plain
from ..edges import at_ends
from .rows import NORM_EPS, EdgeRows, EdgeState, Ends, PostNorm, SweepPlan, add_product, gelu_gradient, plain_post_norm


class EdgeUpdate(torch.autograd.Function):
    """The edge block up to its last post-norm: MLP(t) + t with t = norm(attended + e), (E, D). Section 3.3.

    `folded`, `offset` and `values` are u, c and V g of the nodes (see `EdgeBlock.attend`); `mask` (2, E), if
    any, scales the attention to either end. `w2` and `b2` include the MLP's LayerNorm's scale and shift.
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
        turned_ends = [plan.edges.turned(x) for x in (folded, offset, values)]
        edges = EdgeRows(EdgeState(kept, in_weight, in_bias), plan.edges.turned(kept) if in_weight is None else None)
        ends = Ends(folded, offset, values, turned_ends, mask)
        dtype = plan.matmul_dtype
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        out = kept.new_empty(plan.edges.num_edges, folded.shape[1])
        hidden: list[Tensor] = []  # of each tile: before GELU, after the norm, and the norm's 1/deviation
        for tile in plan.tiles:
            t = PostNorm(ends.attend(tile, edges(tile)), norm_weight, norm_bias).out
            before = torch.addmm(c1, t.to(dtype), v1.t())
            after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            if plan.keep_hidden:
                hidden += before, after, rstd
            torch.add(t, b2, out=out[tile.rows])
            add_product(out[tile.rows], after, v2.t())
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        saved = (kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2, b2)
        ctx.save_for_backward(*saved, *hidden)
        return out

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or torch.is_grad_enabled():
            return differentiate_plain(ctx, *EdgeUpdate.plain(ctx), [grad])
        with torch.autocast(grad.device.type, enabled=False):
            return EdgeUpdate.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of each argument of `forward`, tile by tile."""
        plan: SweepPlan = ctx.plan
        dtype, to_parameters = plan.matmul_dtype, plan.gradient_pass.to_parameters
        saved = ctx.saved_tensors  # reading them unpacks them: once only
        inputs, hidden = saved[:13], saved[13:]
        kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2, _ = inputs
        turned_ends, is_first = [plan.edges.turned(x) for x in (folded, offset, values)], in_weight is None
        edges = EdgeRows(EdgeState(kept, in_weight, in_bias), plan.edges.turned(kept) if is_first else None)
        edges.start_backward(to_parameters)
        to_edges = ctx.needs_input_grad[1] and (plan.gradient_pass.to_embeddings or not is_first)
        ends = Ends(folded, offset, values, turned_ends, mask)
        ends.start_backward()
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        norm_sums = [torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)] if to_parameters else None
        grad_w1, grad_b1, grad_w2, grad_b2 = (kept.new_zeros(x) for x in (w1.shape, b1.shape, w2.shape, (w2.shape[0],)))
        for i, tile in enumerate(plan.tiles):
            norm = PostNorm(ends.attend(tile, edges(tile)), norm_weight, norm_bias)
            t = norm.out.to(dtype)
            if plan.keep_hidden:
                before, after, rstd = hidden[3 * i : 3 * i + 3]
            else:
                before = torch.addmm(c1, t, v1.t())
                after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            out_grad = grad[tile.rows]
            # The norm's spread scales its gradient. Scale rows here: hidden channels are four times as many.
            g = (out_grad * rstd).to(dtype) @ v2
            one, zero = torch.ones_like(rstd), torch.zeros_like(rstd)
            g, _, _ = torch.ops.aten.native_layer_norm_backward(
                g, after, (len(v1),), zero, one, None, None, [True, False, False]
            )
            gelu_gradient(g, before, g)
            if to_parameters:
                add_product(grad_w2, out_grad.t().to(dtype), after)
                grad_b2 += out_grad.sum(dim=0)
                add_product(grad_w1, g.t(), t)
                grad_b1 += g.sum(dim=0)
            t_grad = torch.addmm(out_grad, g, v1) if g.dtype == grad.dtype else out_grad + g @ v1
            edge_grad = ends.backward(tile, norm.backward(t_grad, norm_sums))
            if to_edges:
                edges.backward(tile, edge_grad)
        of_edges = [edges.grad, *(edges.norm_grads or (None, None))] if to_edges else [None] * 3
        own = [*(norm_sums or ()), grad_w1, grad_b1, grad_w2, grad_b2] if to_parameters else [None] * 6
        return None, *of_edges, *ends.grads, None, *own

    @staticmethod
    def plain(ctx: Any) -> tuple[Callable[..., Tensor], dict[int, Tensor | None]]:
        """Return a form of `forward` that autograd can differentiate, and its inputs; see `differentiate_plain`."""
        inputs = list(ctx.saved_tensors[:13])
        mask = inputs.pop(6)
        dtype, listed = ctx.plan.matmul_dtype, ctx.plan.edges

        def update(*given: Any) -> Tensor:
            kept, in_weight, in_bias, folded, offset, values, norm_weight, norm_bias, w1, b1, w2, b2 = given
            edges = EdgeState(kept, in_weight, in_bias).plain(listed)
            (folded_i, folded_j), (offset_i, offset_j), ends = (at_ends(x, listed) for x in (folded, offset, values))
            score = ((edges * (folded_i - folded_j)).sum(dim=1) + (offset_i - offset_j)) / math.sqrt(edges.shape[1])
            weights = torch.stack([score.sigmoid(), (-score).sigmoid()]) * (1.0 if mask is None else mask)
            attended = sum((w[:, None] * value for w, value in zip(weights, ends, strict=True)), start=edges)
            t = plain_post_norm(attended, norm_weight, norm_bias)
            hidden = F.gelu(F.linear(t.to(dtype), w1.to(dtype), b1.to(dtype)))
            hidden = F.layer_norm(hidden, hidden.shape[1:], None, None, NORM_EPS)
            return t + b2 + (hidden @ w2.to(dtype).t()).to(t.dtype)

        return update, dict(zip((1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13), inputs, strict=True))

"""From edges to nodes, tile by tile.

What it buys: no message is kept. The input of GELU, one (E, D) tensor, is kept with `keep_hidden` only. A gradient pass
for the embeddings computes no gradient of parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.recompute_gradients import differentiate_plain
from ..edges import sum_over_neighbours
from ..tiles import SecondEnds
from .rows import EdgeRows, EdgeState, SweepPlan, add_product, gelu_gradient


class EdgeMessages(torch.autograd.Function):
    """Σ_j GELU(W e_ij + b) for every node i, self pairs once: (N, D). Section 3.2 of the paper."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: SweepPlan,
        num_nodes: int,
        kept: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        turned_nodes = plan.edges.turned(kept) if norm_weight is None else None
        edges = EdgeRows(EdgeState(kept, norm_weight, norm_bias), turned_nodes)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        hidden = kept.new_empty(plan.edges.num_edges, len(w), dtype=plan.matmul_dtype) if plan.keep_hidden else None
        total = kept.new_zeros(num_nodes, kept.shape[1])
        at_second = SecondEnds(total, skip_self=True)
        for tile in plan.tiles:
            before = torch.addmm(b, edges(tile).to(w.dtype), w.t(), out=None if hidden is None else hidden[tile.rows])
            messages = at_second.room(tile).copy_(F.gelu(before).view(*tile.shape, -1))
            total[tile.nodes].add_(messages.sum(dim=0))
            at_second.add(total)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, norm_weight, norm_bias, weight, bias, hidden)
        return total

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or torch.is_grad_enabled():
            return differentiate_plain(ctx, *EdgeMessages.plain(ctx), [grad])
        with torch.autocast(grad.device.type, enabled=False):
            return EdgeMessages.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of each argument of `forward`, tile by tile."""
        plan: SweepPlan = ctx.plan
        kept, norm_weight, norm_bias, weight, bias, hidden = ctx.saved_tensors
        to_parameters = plan.gradient_pass.to_parameters
        is_first, turned_grad = norm_weight is None, plan.edges.turned(grad)
        to_edges = ctx.needs_input_grad[2] and (plan.gradient_pass.to_embeddings or not is_first)
        edges = EdgeRows(EdgeState(kept, norm_weight, norm_bias), plan.edges.turned(kept) if is_first else None)
        edges.start_backward(to_parameters)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        grad_w, grad_b = kept.new_zeros(weight.shape), kept.new_zeros(bias.shape)
        for tile in plan.tiles:
            e = edges(tile).to(w.dtype)
            before = hidden[tile.rows] if plan.keep_hidden else torch.addmm(b, e, w.t())
            messages = torch.add(grad[tile.nodes], turned_grad[tile.offsets, tile.nodes], out=tile.box(grad))
            messages[tile.self_pairs] = grad[tile.nodes]
            g = messages.flatten(0, 1).to(w.dtype)
            gelu_gradient(g, before, g)
            if to_parameters:
                add_product(grad_w, g.t(), e)
                grad_b += g.sum(dim=0)
            if to_edges:
                edges.backward(tile, (g @ w).to(kept.dtype))
        of_edges = [edges.grad, *(edges.norm_grads or (None, None))] if to_edges else [None] * 3
        own = (grad_w, grad_b) if to_parameters else (None, None)
        return None, None, *of_edges, *own

    @staticmethod
    def plain(ctx: Any) -> tuple[Callable[..., Tensor], dict[int, Tensor | None]]:
        """Return a form of `forward` that autograd can differentiate, and its inputs; see `differentiate_plain`."""
        kept, norm_weight, norm_bias, weight, bias, _ = ctx.saved_tensors
        dtype, listed = ctx.plan.matmul_dtype, ctx.plan.edges

        def messages(
            kept: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, bias: Tensor
        ) -> Tensor:
            edges = EdgeState(kept, norm_weight, norm_bias).plain(listed).to(dtype)
            made = F.gelu(F.linear(edges, weight.to(dtype), bias.to(dtype)))
            return sum_over_neighbours(made.to(kept.dtype), listed)

        return messages, {2: kept, 3: norm_weight, 4: norm_bias, 5: weight, 6: bias}

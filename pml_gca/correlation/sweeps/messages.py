"""From edges to nodes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.gradients_anew import differentiable_again
from ..edges import edge_pairs, sum_over_neighbours
from ..tiles import once, twice
from .rows import EdgeRows, SweepPlan, add_product, plain_edges, without_autocast


def plain_messages(ctx: Any) -> Any:
    """See `EdgeMessages`."""
    kept, norm_weight, norm_bias, weight, bias, _ = ctx.saved_tensors
    dtype, num_nodes, pairs = ctx.plan.matmul_dtype, ctx.num_nodes, edge_pairs(ctx.num_nodes, kept.device)

    def messages(kept: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        edges = plain_edges(kept, norm_weight, norm_bias).to(dtype)
        made = F.gelu(F.linear(edges, weight.to(dtype), bias.to(dtype)))
        return sum_over_neighbours(made.to(kept.dtype), pairs, num_nodes)

    return messages, {2: kept, 3: norm_weight, 4: norm_bias, 5: weight, 6: bias}


class EdgeMessages(torch.autograd.Function):
    """Σ_j GELU(W e_ij + b) for every node i, self pairs once: (N, D). Section 3.2 of the paper."""

    @staticmethod
    @without_autocast
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
        edges = EdgeRows(kept, norm_weight, norm_bias)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        total = kept.new_zeros(2 * num_nodes, kept.shape[1])
        hidden = plan.room_for_hidden(kept, len(w))
        for tile in plan.tiles:
            before = torch.addmm(b, edges(tile).to(w.dtype), w.t(), out=plan.part(hidden, tile))
            messages = tile.box(F.gelu(before).to(total.dtype))
            tile.add_to_first(total, messages)
            tile.add_to_second(total, messages, skip_self=True)
        ctx.plan, ctx.num_nodes = plan, num_nodes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, norm_weight, norm_bias, weight, bias, hidden)
        return once(total)

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_messages)
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 7
        plan: SweepPlan = ctx.plan
        kept, norm_weight, norm_bias, weight, bias, hidden = ctx.saved_tensors
        wanted = plan.gradient_pass
        edges = EdgeRows(kept, norm_weight, norm_bias)
        edges.start_backward(wanted)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        want_edges = ctx.needs_input_grad[2] and (wanted.to_embeddings or not edges.is_first)
        grad_w, grad_b = kept.new_zeros(weight.shape), kept.new_zeros(bias.shape)
        at_nodes = twice(grad)
        for tile in plan.tiles:
            e = edges(tile).to(w.dtype)
            before = hidden[tile.rows] if plan.keep_hidden else torch.addmm(b, e, w.t())
            messages = tile.first(at_nodes) + tile.second(at_nodes)
            if tile.offset == 0:
                messages[0] = tile.first(at_nodes)
            g = torch.ops.aten.gelu_backward(messages.flatten(0, 1).to(w.dtype), before)
            if wanted.to_parameters:
                add_product(grad_w, g.t(), e)
                grad_b += g.sum(dim=0)
            if want_edges:
                edges.backward(tile, (g @ w).to(kept.dtype))
        grads = edges.gradients() if want_edges else (None, None, None)
        own = (grad_w, grad_b) if wanted.to_parameters else (None, None)
        return None, None, *grads, *own

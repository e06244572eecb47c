"""From edges to coefficients, tile by tile.

What it buys: only λ is kept. Autograd would keep the centred and the normalised edges too, an (E, D) tensor each.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.recompute_gradients import differentiate_plain
from ..tiles import Tile
from .rows import EdgeRows, EdgeState, SweepPlan, add_product


@torch.no_grad()
def edge_statistics(plan: SweepPlan, state: EdgeState) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of edges as ordered pairs, and mean and (biased) variance of each channel over them."""
    edges, like = EdgeRows(state), state.kept
    counted = 0
    mean, squares = like.new_zeros(like.shape[1]), like.new_zeros(like.shape[1])
    for tile in plan.tiles:
        (offsets, first_ends), box = tile.shape, edges(tile).view(*tile.shape, -1)
        new = (2 * offsets - tile.self_pairs.stop) * first_ends
        new_mean = ordered_pairs_sum(box, tile) / new
        new_squares = ordered_pairs_sum(box.sub_(new_mean).square_(), tile)
        # Merge the statistics of two groups: a plain sum of squares would lose digits.
        apart, both = new_mean - mean, counted + new
        mean = mean + apart * (new / both)
        squares = squares + new_squares + apart.square() * (counted * new / both)
        counted = both
    count = torch.full((), counted, dtype=like.dtype, device=like.device)
    if plan.edges.processes is not None:
        everyone, sums = plan.edges.total(count, mean * count)
        apart = mean - sums / everyone
        (squares,) = plan.edges.total(squares + apart.square() * count)
        count, mean = everyone, sums / everyone
    return count, mean, squares / count


def ordered_pairs_sum(box: Tensor, tile: Tile) -> Tensor:
    """Return the sum of (offsets, first ends, D) values of edges over the ordered pairs that they stand for: (D,)."""
    return 2 * box.sum(dim=(0, 1)) - box[tile.self_pairs].sum(dim=(0, 1))


class EdgeCoefficients(torch.autograd.Function):
    """λ = sigmoid(W BatchNorm(e) + b) of all edges, (E, D), with given statistics. Section 3.3 of the paper.

    `scale` is the BatchNorm's. If the statistics are of the batch (`count` is given), gradients flow through them too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: SweepPlan,
        kept: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        count: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        edges = EdgeRows(EdgeState(kept, norm_weight, norm_bias))
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        out = kept.new_empty(plan.edges.num_edges, len(w), dtype=plan.matmul_dtype)
        for tile in plan.tiles:
            normalised = edges(tile).sub_(mean).mul_(rstd * scale)
            torch.addmm(b, normalised.to(w.dtype), w.t(), out=out[tile.rows])
            out[tile.rows].sigmoid_()
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, norm_weight, norm_bias, count, mean, rstd, scale, weight, bias, out)
        return out

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or torch.is_grad_enabled():
            return differentiate_plain(ctx, *EdgeCoefficients.plain(ctx), [grad])
        with torch.autocast(grad.device.type, enabled=False):
            return EdgeCoefficients.gradients(ctx, grad)

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of each argument of `forward`, tile by tile."""
        plan: SweepPlan = ctx.plan
        kept, norm_weight, norm_bias, count, mean, rstd, scale, weight, _, out = ctx.saved_tensors
        dtype, wide = plan.matmul_dtype, weight.to(kept.dtype)
        edges = EdgeRows(EdgeState(kept, norm_weight, norm_bias))
        edges.start_backward(plan.gradient_pass.to_parameters)

        def swept() -> Iterator[tuple[Tile, Tensor, Tensor]]:
            """Yield each tile, the gradient of its logits, and its normalised edges."""
            for tile in plan.tiles:
                logits = torch.ops.aten.sigmoid_backward(grad[tile.rows], out[tile.rows])
                yield tile, logits, edges(tile).sub_(mean).mul_(rstd)

        # Two sweeps, which compute a tile anew; if there is one tile only, it serves both.
        sweep = list(swept()) if len(plan.tiles) == 1 else None
        # First the sums over all edges: gradients of the parameters and, through them, of the batch's statistics.
        by_pair, grad_b = kept.new_zeros(weight.shape), kept.new_zeros(len(weight))
        for _, logits, normalised in sweep or swept():
            add_product(by_pair, logits.t(), normalised.to(dtype))
            grad_b += logits.sum(dim=0)
        grad_scale = (by_pair * wide).sum(dim=0)
        all_scale, all_b = plan.edges.total(grad_scale, grad_b)
        w = (wide * (scale * rstd)).to(dtype)
        if count is not None:
            # An edge takes part in the statistics once for each ordered pair that it stands for.
            share = rstd * scale * (-2 / count)
            shift, slope = wide.t().mv(all_b) * share, all_scale * share
        for tile, logits, normalised in sweep or swept():
            if count is None:
                g = (logits @ w).to(kept.dtype)
            else:
                g = torch.addcmul(shift, normalised, slope)
                g.view(*tile.shape, -1)[tile.self_pairs].div_(2)
                add_product(g, logits, w)
            edges.backward(tile, g)
        own = (grad_scale, by_pair * scale, grad_b) if plan.gradient_pass.to_parameters else (None,) * 3
        return None, edges.grad, *(edges.norm_grads or (None, None)), None, None, None, *own

    @staticmethod
    def plain(ctx: Any) -> tuple[Callable[..., Tensor], dict[int, Tensor | None]]:
        """Return a form of `forward` that autograd can differentiate, and its inputs; see `differentiate_plain`."""
        kept, norm_weight, norm_bias, count, mean, rstd, scale, weight, bias, _ = ctx.saved_tensors
        dtype, listed = ctx.plan.matmul_dtype, ctx.plan.edges
        counts = (tile.multiplicity(kept).flatten() for tile in ctx.plan.tiles)
        multiplicity = torch.cat([kept.new_empty(0), *counts])[:, None]  # an empty graph has no tile

        def coefficients(
            kept: Tensor, norm_weight: Tensor, norm_bias: Tensor, scale: Tensor, weight: Tensor, bias: Tensor
        ) -> Tensor:
            edges = EdgeState(kept, norm_weight, norm_bias).plain(listed)
            centred, spread = edges - mean, rstd
            if count is not None:
                add = listed.everywhere or (lambda *sums: sums)
                centred = edges - add((edges * multiplicity).sum(dim=0))[0] / count
                variance = add((centred.square() * multiplicity).sum(dim=0))[0] / count
                eps = (rstd.pow(-2) - variance).detach()  # as the statistics were given
                spread = torch.rsqrt(variance + eps)
            return F.linear((centred * (spread * scale)).to(dtype), weight.to(dtype), bias.to(dtype)).sigmoid()

        return coefficients, {1: kept, 2: norm_weight, 3: norm_bias, 7: scale, 8: weight, 9: bias}

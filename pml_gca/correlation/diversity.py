"""J_div, which makes coefficients differ. Section 3.5 of https://arxiv.org/abs/2411.13145"""

from typing import Any

import torch
from torch import Tensor

from ..utils.dtypes import compute_dtype
from ..utils.recompute_gradients import differentiate_plain
from .edge_list import EdgeList
from .edges import at_ends, edge_multiplicity, sum_over_neighbours
from .tiles import SecondEnds, default_chunk_size


def diversity_loss(coefficients: Tensor, edges: EdgeList, edge_chunk_size: int | None = None) -> Tensor:
    r"""Return how alike the coefficients of each node are, over all ordered pairs.

    $$
    J_{div} = 1 - \sqrt{\sum_{ijd} (\lambda_{ijd} - \bar{\lambda}_{id})^2 / N^2}, \quad
    \bar{\lambda}_{id} = \text{mean}_j \lambda_{ijd}
    $$

    With a memory, sums and means are over the pairs that share an edge, and N² is their number; see `edges`.

    Args:
        coefficients: (E, D), of the listed edges.
        edges: the list of edges.
        edge_chunk_size: edges computed at a time; chosen by the device if None.

    Returns:
        Scalar, in float32 or wider; 1 when nothing differs, and may be negative, as channels are summed.
    """
    if torch.compiler.is_compiling():
        return plain_diversity_loss(coefficients, edges)
    chunk = edge_chunk_size or default_chunk_size(coefficients.shape[1], coefficients.device)
    loss: Tensor = Diversity.apply(coefficients, edges, chunk)
    return loss


def plain_diversity_loss(coefficients: Tensor, edges: EdgeList) -> Tensor:
    """Compute `diversity_loss` in a form that autograd can differentiate."""
    pairs = edges.pairs(coefficients.device)
    values = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
    add = edges.everywhere or (lambda *sums: sums)
    means = add(sum_over_neighbours(values, edges))[0] / edges.degrees(values)
    mean_i, mean_j = at_ends(means, edges)
    squares = (values - mean_i).square() + (values - mean_j).square()
    (spread,) = edges.leave((squares.sum(dim=1) * edge_multiplicity(pairs, values.dtype)).sum() / 2)
    return 1 - (spread / max(edges.num_ordered_pairs, 1)).clamp_min(2 * torch.finfo(values.dtype).tiny).sqrt()


class Diversity(torch.autograd.Function):
    """Compute `diversity_loss` tile by tile, without another tensor of the coefficients' size."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, edges: EdgeList, chunk: int) -> Tensor:
        dtype, tiles, num_nodes = compute_dtype(coefficients), edges.tiles(chunk), edges.num_nodes
        total = coefficients.new_zeros(num_nodes, coefficients.shape[1], dtype=dtype)
        at_second = SecondEnds(total, skip_self=True)
        for tile in tiles:
            values = at_second.room(tile).copy_(coefficients[tile.rows].view(*tile.shape, -1))
            total[tile.nodes].add_(values.sum(dim=0))
            at_second.add(total)
        mean = edges.total(total)[0] / edges.degrees(total)
        turned_mean, spread = edges.turned(mean), mean.new_zeros(())
        for tile in tiles:
            values = coefficients[tile.rows].to(dtype).view(*tile.shape, -1)
            # Both ends of an edge see it; a self pair has one end, met twice.
            for means in (mean[tile.nodes], turned_mean[tile.offsets, tile.nodes]):
                squares = torch.linalg.vector_norm(values - means, dim=2).square_()
                spread += (squares * tile.multiplicity(mean)).sum() / 2
        (spread,) = edges.total(spread)
        # The bound keeps the root's infinite slope at 0 out of the gradient.
        root = (spread / max(edges.num_ordered_pairs, 1)).clamp_min(torch.finfo(dtype).tiny).sqrt()
        ctx.edges, ctx.tiles = edges, tiles
        ctx.save_for_backward(coefficients, mean, root)
        return 1 - root

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, mean, root = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate_plain(ctx, lambda c: plain_diversity_loss(c, ctx.edges), {0: coefficients}, [grad])
        turned_mean, out = ctx.edges.turned(mean), torch.empty_like(coefficients)
        # d root = Σ (2 λ_ij - mean_i - mean_j) dλ_ij / (N² root) per ordered pair; zero where nothing differs.
        scale = -grad / (root * max(ctx.edges.num_ordered_pairs, 1))
        scale = scale.masked_fill(root.square() <= 2 * torch.finfo(root.dtype).tiny, 0.0)
        for tile in ctx.tiles:
            # Subtract from the means, and change the sign after it: one tensor is written, and no copy made.
            box = out[tile.rows].view(*tile.shape, -1)
            values = box if box.dtype == mean.dtype else tile.box(mean)
            torch.add(mean[tile.nodes], turned_mean[tile.offsets, tile.nodes], out=values)
            values.sub_(coefficients[tile.rows].view_as(box), alpha=2)
            values.mul_((tile.multiplicity(mean) * (scale / -2))[..., None])
            if values is not box:
                box.copy_(values)
        return out, None, None

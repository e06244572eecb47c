"""The terms that train the generator of GCA-HNG; pure functions. Section 3.5 of https://arxiv.org/abs/2411.13145"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.dtypes import compute_dtype, matmul_dtype
from ..utils.gradients_anew import differentiable_again
from ..utils.norms import unit
from ..utils.row_dots import norm_or_floor, row_dots
from .edges import at_ends, edge_multiplicity, edge_pairs, sum_over_neighbours
from .tiles import Tile, default_chunk_size, edge_tiles, once, twice

CLASSIFIED_VALUES = 2**22  # logits computed at a time


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of ``values``, and 0 with a graph where there are none."""
    return values.mean() if values.numel() else values.sum()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (R, num_classes) logits and (R,) labels, in float32 or wider; 0 without rows."""
    return mean_or_zero(F.cross_entropy(logits.to(compute_dtype(logits)), labels, reduction="none"))


def plain_classification(ctx: Any) -> Any:
    """See `frozen_classification_loss`; without half precision."""
    _, rows, weight, bias, labels = ctx.saved_tensors
    dtype = compute_dtype(rows, weight)
    return lambda rows: classification_loss(F.linear(rows.to(dtype), weight.to(dtype), bias.to(dtype)), labels), {
        0: rows
    }


class FrozenClassification(torch.autograd.Function):
    """See `frozen_classification_loss`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        dtype, product = compute_dtype(rows, weight), matmul_dtype(weight)
        # The errors of what is classified well are too small for float16, and no scaler sees them here.
        gradient_product = dtype if product == torch.float16 else product
        total, gradient = rows.new_zeros((), dtype=dtype), torch.empty_like(rows)
        device = rows.device.type
        parts = (x.split(max(CLASSIFIED_VALUES // len(weight), 1)) for x in (rows, labels[:, None], gradient))
        for part, target, part_gradient in zip(*parts, strict=True):
            with torch.autocast(device, enabled=False):
                # Long rows leave float16, and so would their products.
                scale = scale_into_half(part) if product == torch.float16 else 1.0
                logits = F.linear((part / scale).to(product), weight.to(product)).to(dtype) * scale + bias.to(dtype)
                log_probability = logits.log_softmax(dim=1)
                total -= log_probability.gather(1, target).sum()
                error = log_probability.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=dtype))
                part_gradient.copy_(error.to(gradient_product) @ weight.to(gradient_product)).div_(len(rows))
        ctx.save_for_backward(gradient, rows, weight, bias, labels)
        return total / max(len(rows), 1)

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_classification)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = ctx.saved_tensors[0]
        return gradient * grad, None, None, None


def scale_into_half(rows: Tensor) -> Tensor:
    """What to divide (R, D) rows by so that no value is beyond 1: (R, 1)."""
    return torch.linalg.vector_norm(rows, ord=math.inf, dim=1, keepdim=True).clamp_min(1.0)


def frozen_classification_loss(rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """`classification_loss` of a linear classifier that is not to learn.

    The gradient is taken in the forward pass, in parts, so that a logit per negative and training class, of which
    there may be thousands each, is never kept.

    Args:
        rows: (S, D).
        weight, bias: (num_classes, D) and (num_classes,); they get no gradient.
        labels: (S,) long.
    """
    loss: Tensor = FrozenClassification.apply(rows, weight.detach(), bias.detach(), labels)
    return loss


def similarity_loss(nodes: Tensor, anchors: Tensor, synthetic: Tensor) -> Tensor:
    """J_sim = mean(1 − cos(z_i, ẑ)): small when the synthetic negatives are hard.

    Args:
        nodes: (N, D), z.
        anchors: (S,) long, the node each synthetic negative belongs to.
        synthetic: (S, D), ẑ.
    """
    directions, _ = unit(nodes.to(synthetic.dtype))
    lengths = norm_or_floor(synthetic, floor=0.0)
    cosine = row_dots(directions, anchors, synthetic) / lengths.masked_fill(lengths == 0, 1.0)
    return mean_or_zero(1 - cosine)


def plain_diversity(ctx: Any) -> Any:
    """See `diversity_loss`."""
    coefficients, mean, _ = ctx.saved_tensors
    num_nodes, pairs = len(mean), edge_pairs(len(mean), mean.device)

    def diversity(coefficients: Tensor) -> Tensor:
        values = coefficients.to(mean.dtype)
        means = sum_over_neighbours(values, pairs, num_nodes) / max(num_nodes, 1)
        mean_i, mean_j = at_ends(means, pairs)
        squares = (values - mean_i).square() + (values - mean_j).square()
        spread = (squares.sum(dim=1) * edge_multiplicity(pairs, mean.dtype)).sum() / 2
        return 1 - (spread / max(num_nodes, 1) ** 2).clamp_min(2 * torch.finfo(mean.dtype).tiny).sqrt()

    return diversity, {1: coefficients}


class Diversity(torch.autograd.Function):
    """See `diversity_loss`; nothing of the coefficients' size is kept but themselves."""

    @staticmethod
    def forward(ctx: Any, tiles: Sequence[Tile], coefficients: Tensor, num_nodes: int) -> Tensor:
        dtype = compute_dtype(coefficients)
        total = coefficients.new_zeros(2 * num_nodes, coefficients.shape[1], dtype=dtype)
        for tile in tiles:
            values = tile.box(coefficients[tile.rows]).to(dtype)
            tile.add_to_first(total, values)
            tile.add_to_second(total, values, skip_self=True)
        mean = once(total) / max(num_nodes, 1)
        means, spread = twice(mean), mean.new_zeros(())
        for tile in tiles:
            values = tile.box(coefficients[tile.rows]).to(dtype)
            # Both ends of an edge see it; a self pair has one end, met twice.
            squares = (values - tile.first(means)).square_() + (values - tile.second(means)).square_()
            spread += (squares.sum(dim=2) * tile.multiplicity(mean)).sum() / 2
        # The bound keeps the root's infinite slope at 0 out of the gradient.
        root = (spread / max(num_nodes, 1) ** 2).clamp_min(torch.finfo(dtype).tiny).sqrt()
        ctx.tiles = tiles
        ctx.save_for_backward(coefficients, mean, root)
        return 1 - root

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_diversity)
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        coefficients, mean, root = ctx.saved_tensors
        means, out = twice(mean), torch.empty_like(coefficients)
        # d root = Σ (2 λ_ij - mean_i - mean_j) dλ_ij / (N² root) per ordered pair; nothing where nothing differs.
        scale = -grad / (root * max(len(mean), 1) ** 2)
        scale = scale.masked_fill(root.square() <= 2 * torch.finfo(root.dtype).tiny, 0.0)
        for tile in ctx.tiles:
            values = 2 * tile.box(coefficients[tile.rows]).to(mean.dtype)
            values = values.sub_(tile.first(means)).sub_(tile.second(means))
            out[tile.rows] = values.mul_((tile.multiplicity(mean) * (scale / 2))[..., None]).flatten(0, 1)
        return None, out, None


def diversity_loss(coefficients: Tensor, num_nodes: int, edge_chunk_size: int | None = None) -> Tensor:
    r"""How alike the coefficients of each node are, over all ordered pairs.

    .. math:: J_{div} = 1 - \sqrt{\sum_{ijd} (\lambda_{ijd} - \bar{\lambda}_{id})^2 / N^2}, \quad
              \bar{\lambda}_{id} = \text{mean}_j \lambda_{ijd}

    Args:
        coefficients: (E, D), of undirected edges.
        num_nodes: N.
        edge_chunk_size: edges computed at a time; chosen by the device if None.

    Returns:
        Scalar, in float32 or wider; 1 when nothing differs, and may be negative, as channels are summed.
    """
    chunk = edge_chunk_size or default_chunk_size(coefficients.shape[1], coefficients.device)
    loss: Tensor = Diversity.apply(edge_tiles(num_nodes, chunk), coefficients, num_nodes)
    return loss

"""Products of many rows with rows that they share."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .gradients_anew import differentiable_again
from .norms import length, scale_of

VALUES_AT_A_TIME = 2**20


def plain_row_dots(ctx: Any) -> Any:
    """See `row_dots`."""
    shared, index, rows = ctx.saved_tensors
    return lambda shared, rows: (shared.index_select(0, index) * rows).sum(dim=1), {0: shared, 2: rows}


class RowDots(torch.autograd.Function):
    """See `row_dots`."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(shared, index, rows)
        out = rows.new_empty(len(rows))
        for part, which, dots in parts(rows, index, out):
            torch.linalg.vecdot(shared.index_select(0, which), part, out=dots)
        return out

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_row_dots)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        shared, index, rows = ctx.saved_tensors
        want_shared, _, want_rows = ctx.needs_input_grad
        for_shared = torch.zeros_like(shared) if want_shared else None
        for_rows = torch.empty_like(rows) if want_rows else None
        scale = grad[:, None]
        if for_shared is not None:
            for part, which, g in parts(rows, index, scale):
                for_shared.index_add_(0, which, part * g)
        if for_rows is not None:
            for part, which, g in parts(for_rows, index, scale):
                torch.mul(shared.index_select(0, which), g, out=part)
        return for_shared, None, for_rows


def parts(rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of (R, D) ``rows`` and of others as long, in portions that stay in the cache."""
    size = max(VALUES_AT_A_TIME // max(rows.shape[1], 1), 1)
    return zip(*(x.split(size) for x in (rows, *others)), strict=True)


def row_dots(shared: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Dot product of each row with the shared row it belongs to; nothing of the rows' size is made but their gradient.

    Args:
        shared: (B, D), floating.
        index: (R,) long, row of ``shared`` that each of the rows meets.
        rows: (R, D), of the same dtype.

    Returns:
        (R,).
    """
    dots: Tensor = RowDots.apply(shared, index, rows)
    return dots


def plain_row_lengths(ctx: Any) -> Any:
    """See `norm_or_floor`."""
    rows, _ = ctx.saved_tensors
    return length, {0: rows}


class RowLengths(torch.autograd.Function):
    """Euclidean norms of rows of any size, in parts; see `norm_or_floor`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        norms = rows.new_empty(len(rows))
        for part, found in parts(rows, norms):
            found.copy_(length(part))
        ctx.save_for_backward(rows, norms)
        return norms

    @staticmethod
    @torch.compiler.disable
    @differentiable_again(plain_row_lengths)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
        rows, norms = ctx.saved_tensors
        out = torch.empty_like(rows)
        # Directions first: gradients over norms may overflow where directions times gradients do not.
        scales = norms.masked_fill(norms == 0, 1.0)[:, None], grad[:, None]
        for part, found, norm, g in parts(rows, out, *scales):
            torch.div(part, norm, out=found).mul_(g)
        return (out,)


def norm_or_floor(rows: Tensor, p: float = 2.0, floor: float = 1e-12) -> Tensor:
    """p-norms of (R, D) rows, at least ``floor``, as `torch.nn.functional.normalize` divides by: (R,)."""
    if p == 2:
        norms: Tensor = RowLengths.apply(rows)
    else:
        scale = scale_of(rows)
        norms = torch.linalg.vector_norm(rows / scale, ord=p, dim=1) * scale[:, 0]
    return norms.clamp_min(floor) if floor else norms

"""Dot products of many rows with rows that they share, and norms of many rows; gradients in portions."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .norms import length, scale_of
from .portions import CPU_VALUES, rows_at_a_time
from .recompute_gradients import differentiate_plain

VALUES_AT_A_TIME = CPU_VALUES  # on a CPU


class RowDots(torch.autograd.Function):
    """Compute `row_dots`, and its gradient in portions."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(shared, index, rows)
        out = rows.new_empty(len(rows))
        for part, which, dots in parts(rows, index, out):
            torch.linalg.vecdot(shared.index_select(0, which), part, out=dots)
        return out

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shared, index, rows = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs: dict[int, Tensor | None] = {0: shared, 2: rows}
            return differentiate_plain(ctx, lambda s, r: (s.index_select(0, index) * r).sum(dim=1), inputs, [grad])
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
    """Yield views of (R, D) `rows` and of others as long, in portions."""
    size = rows_at_a_time(rows.shape[1], rows.device, VALUES_AT_A_TIME)
    return zip(*(x.split(size) for x in (rows, *others)), strict=True)


def row_dots(shared: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Return the dot product of each row with the shared row it belongs to.

    The gradient of the rows is the only allocation of their size.

    Args:
        shared: (B, D), floating.
        index: (R,) long, row of `shared` that each of the rows meets.
        rows: (R, D), of the same dtype.

    Returns:
        (R,).
    """
    if torch.compiler.is_compiling():
        return (shared.index_select(0, index) * rows).sum(dim=1)
    dots: Tensor = RowDots.apply(shared, index, rows)
    return dots


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, norms = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate_plain(ctx, length, {0: rows}, [grad])
        out = torch.empty_like(rows)
        # Directions first: gradients over norms may overflow where directions times gradients do not.
        scales = norms.masked_fill(norms == 0, 1.0)[:, None], grad[:, None]
        for part, found, norm, g in parts(rows, out, *scales):
            torch.div(part, norm, out=found).mul_(g)
        return (out,)


def norm_or_floor(rows: Tensor, p: float = 2.0, floor: float = 1e-12) -> Tensor:
    """Return p-norms of (R, D) rows, at least `floor`: (R,). `torch.nn.functional.normalize` divides by them."""
    norms: Tensor
    if p == 2:
        norms = length(rows) if torch.compiler.is_compiling() else RowLengths.apply(rows)
    else:
        scale = scale_of(rows)
        norms = torch.linalg.vector_norm(rows / scale, ord=p, dim=1) * scale[:, 0]
    return norms.clamp_min(floor) if floor else norms

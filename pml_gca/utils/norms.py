"""Lengths and scales of rows, whatever their size: a square leaves float32 at 1e19, and is lost below 1e-23."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def scale_of(rows: Tensor, dim: int = -1) -> Tensor:
    """What to divide rows by, so that sums of their squares and products neither overflow nor vanish.

    It is 1 for rows whose largest value is of a usual size, and for zeros; else it brings that value to the nearest
    usual size. No gradient flows into it.

    Args:
        rows: (..., D) in float32 or wider.
        dim: the dimension of size D.

    Returns:
        (..., 1), with ``dim`` kept.
    """
    if rows.numel() == 0:
        return rows.new_ones([1 if i == dim % rows.ndim else size for i, size in enumerate(rows.shape)])
    largest = torch.linalg.vector_norm(rows.detach(), ord=math.inf, dim=dim, keepdim=True)
    bound = largest_usual(rows.dtype)
    return torch.where(largest > 0, largest / largest.clamp(1 / bound, bound), 1.0)


@torch.no_grad()
def excess_of(rows: Tensor, dim: int = -1) -> Tensor:
    """As `scale_of`, where only long rows are to be scaled: at least 1, and 1 for short ones."""
    largest = torch.linalg.vector_norm(rows, ord=math.inf, dim=dim, keepdim=True)
    return (largest / largest_usual(rows.dtype)).clamp_min(1.0)


def largest_usual(dtype: torch.dtype) -> float:
    """2^30 of float32, whose numbers end at 2^128: gradients have third powers of norms, and sums of them."""
    _, exponent = math.frexp(torch.finfo(dtype).max)
    return 2.0 ** (exponent * 15 // 64)


def are_usual(norms: Tensor) -> bool:
    """Whether norms tell by themselves that no square has overflowed or vanished.

    It is only asked on the host: a device would have to be waited for, and has time for one more pass over its rows.
    """
    if norms.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if norms.numel() == 0:
        return True
    bound = largest_usual(norms.dtype)
    low, high = (float(x) for x in norms.detach().aminmax())
    return 1 / bound < low and high < bound


def length(rows: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Euclidean norms of (..., D) rows of any size; the gradients of a zero row, second ones too, are zero."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=dim, keepdim=keepdim)
    if rows.numel() == 0 or are_usual(norms):
        return norms
    scale = scale_of(rows, dim)
    zero = torch.linalg.vector_norm(rows.detach(), ord=math.inf, dim=dim, keepdim=True) == 0
    norms = torch.linalg.vector_norm(torch.where(zero, 1.0, rows / scale), dim=dim, keepdim=True) * scale
    norms = norms.masked_fill(zero, 0.0)
    return norms if keepdim else norms.squeeze(dim)


def directed(rows: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """As `unit`, of rows of usual size; those no longer than ``floor`` have no direction."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    none = norm <= floor
    if are_usual(norm) and not none.any():
        return rows / norm, norm
    rows = torch.where(none, 1.0, rows)  # whatever becomes of these, it has no gradient
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(none, 0.0, rows / norm), norm.masked_fill(none, 0.0)


def unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and lengths of rows of any size.

    A zero row has no direction: it stays zero, and gets no gradient from it.

    Args:
        rows: (R, D), in float32 or wider.

    Returns:
        ``(directions, lengths)``: (R, D) and (R, 1).
    """
    scale = scale_of(rows)
    directions, lengths = directed(rows / scale)
    return directions, lengths * scale

"""Lengths and scales of rows of any size. Squares overflow float32 from 1e19 on, and vanish below 1e-23."""

import math

import torch
from torch import Tensor

WIDE_NORMS = ("cuda",)
"""Devices that sum squares of float32 in float64: a cast, a sum and a cast back, where a scaled sum takes a dozen."""


@torch.no_grad()
def scale_of(rows: Tensor, dim: int = -1) -> Tensor:
    """Return divisors of rows after which sums of squares and products neither overflow nor vanish.

    A divisor is 1 for a row whose largest value is of a usual size, and for zeros. Else it brings that value to the
    nearest usual size. No gradient flows into it.

    Args:
        rows: (..., D) in float32 or wider.
        dim: the dimension of size D.

    Returns:
        (..., 1), with `dim` kept.
    """
    if rows.numel() == 0:
        return rows.new_ones([1 if i == dim % rows.ndim else size for i, size in enumerate(rows.shape)])
    largest = torch.linalg.vector_norm(rows.detach(), ord=math.inf, dim=dim, keepdim=True)
    bound = largest_usual(rows.dtype)
    return torch.where(largest > 0, largest / largest.clamp(1 / bound, bound), 1.0)


@torch.no_grad()
def excess_of(rows: Tensor, dim: int = -1) -> Tensor:
    """Return divisors as `scale_of` does, but leave short rows alone: at least 1."""
    largest = torch.linalg.vector_norm(rows, ord=math.inf, dim=dim, keepdim=True)
    return (largest / largest_usual(rows.dtype)).clamp_min(1.0)


def largest_usual(dtype: torch.dtype) -> float:
    """Return the largest usual size: 2^30 in float32, which ends at 2^128. Gradients contain sums of cubed norms."""
    _, exponent = math.frexp(torch.finfo(dtype).max)
    return 2.0 ** (exponent * 15 // 64)


def are_usual(norms: Tensor) -> bool:
    """Return whether norms prove that no square has overflowed or vanished.

    False on a device, without a look: the host would have to wait, and a device has time for another pass.
    """
    if norms.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if norms.numel() == 0:
        return True
    bound = largest_usual(norms.dtype)
    low, high = (float(x) for x in norms.detach().aminmax())
    return 1 / bound < low and high < bound


def length(rows: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """Return Euclidean norms of (..., D) rows of any size. First and second gradients of a zero row are zero."""
    norms: Tensor
    has_gradient = torch.is_grad_enabled() and rows.requires_grad
    if rows.device.type in WIDE_NORMS and rows.dtype == torch.float32 and not has_gradient:
        norms = torch.linalg.vector_norm(rows, dim=dim, keepdim=keepdim, dtype=torch.float64)
        return norms.to(rows.dtype)
    norms = torch.linalg.vector_norm(rows, dim=dim, keepdim=keepdim)
    if rows.numel() == 0 or are_usual(norms):
        return norms
    scale = scale_of(rows, dim)
    zero = torch.linalg.vector_norm(rows.detach(), ord=math.inf, dim=dim, keepdim=True) == 0
    norms = torch.linalg.vector_norm(torch.where(zero, 1.0, rows / scale), dim=dim, keepdim=True) * scale
    norms = norms.masked_fill(zero, 0.0)
    return norms if keepdim else norms.squeeze(dim)


def directed(rows: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return what `unit` does, for rows of usual size. Rows of length `floor` or less have no direction."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    none = norm <= floor
    if are_usual(norm) and not none.any():
        return rows / norm, norm
    rows = torch.where(none, 1.0, rows)  # they get no gradient
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(none, 0.0, rows / norm), norm.masked_fill(none, 0.0)


def unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return directions and lengths of rows of any size.

    A zero row has no direction: it stays zero, and gets no gradient.

    Args:
        rows: (R, D), in float32 or wider.

    Returns:
        `(directions, lengths)`: (R, D) and (R, 1).
    """
    scale = scale_of(rows)
    directions, lengths = directed(rows / scale)
    return directions, lengths * scale

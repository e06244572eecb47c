"""Mean and deviation of many values, in portions."""

import torch
from torch import Tensor

from .portions import rows_at_a_time

VALUES_AT_A_TIME = 2**22  # on a CPU


def std_mean(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the standard deviation (n - 1 in the denominator) and the mean of all values, 0-dimensional.

    Narrower values are widened in portions: a wide copy of all of them would fill the memory.

    Args:
        rows: (R, D), at least two values, without gradient.
        dtype: of the result.
    """
    mean = rows.new_zeros((), dtype=dtype)
    portions = rows.split(rows_at_a_time(rows.shape[1], rows.device, VALUES_AT_A_TIME))
    for portion in portions:
        mean = mean + portion.to(dtype).mean() * (portion.numel() / rows.numel())
    squares = rows.new_zeros((), dtype=dtype)
    for portion in portions:
        squares = squares + torch.linalg.vector_norm(portion.to(dtype) - mean).square()
    return (squares / (rows.numel() - 1)).sqrt(), mean

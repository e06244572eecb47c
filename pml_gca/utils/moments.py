"""Mean and deviation of many values, in portions."""

import torch
from torch import Tensor

VALUES_AT_A_TIME = 2**22


def std_mean(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the standard deviation (n - 1 in the denominator) and the mean of all values, 0-dimensional.

    Narrower values are widened in portions: a wide copy of all of them would fill the memory.

    Args:
        rows: (R, D), at least two values, without gradient.
        dtype: of the result.
    """
    parts = []
    for portion in rows.split(max(VALUES_AT_A_TIME // rows.shape[1], 1)):
        parts.append((portion.numel() / rows.numel(), *torch.var_mean(portion.to(dtype), correction=0)))
    zero = rows.new_zeros((), dtype=dtype)
    mean = sum((share * own for share, _, own in parts), start=zero)
    variance = sum((share * (within + (own - mean).square()) for share, within, own in parts), start=zero)
    return (variance * (rows.numel() / (rows.numel() - 1))).sqrt(), mean

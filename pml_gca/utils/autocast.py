"""What autocast asks for, and what it must not do."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def uncached_without_gradient(device: str) -> AbstractContextManager[object]:
    """A context in which autocast, without gradients, leaves its cache alone.

    The cache would hand weights that were cast without a gradient to a training pass in the same autocast, whose
    parameters then get none. Newer releases of torch take care of it.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``weight``: that of autocast, which leaves float64 alone, or its own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype

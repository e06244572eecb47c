"""The dtypes that values are computed in, with and without autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype for norms, distances and batch statistics: the widest of the tensors', at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `weight`: that of autocast, which leaves float64 alone, or its own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def uncached_without_gradient(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast does not cache the weights that it casts without gradients.

    A later training pass in the same autocast would find them in the cache, and its parameters would get no gradient.
    Newer releases of torch prevent this themselves.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)

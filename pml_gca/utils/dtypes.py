"""The dtypes that values are computed in, with and without autocast."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype for norms, distances and batch statistics: the widest of the tensors', at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def as_wide_as(parameters: Iterable[Tensor], embeddings: Tensor) -> Tensor:
    """Return embeddings in the widest dtype of the parameters of a PML loss, if theirs is narrower.

    PML casts proxies and class weights themselves to the dtype of the embeddings: an autocast of the network would
    leave them in half precision, where small steps are lost and optimizer states no longer fit.
    """
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        return embeddings  # refused elsewhere
    dtype = embeddings.dtype
    for parameter in parameters:
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return embeddings.to(dtype)


def outside_autocast(parameters: Iterable[Tensor], embeddings: Tensor) -> AbstractContextManager[object]:
    """Return a context for a PML loss that has parameters: without autocast, as its embeddings are wide already."""
    device = embeddings.device.type if isinstance(embeddings, Tensor) else "cpu"
    if next(iter(parameters), None) is None or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


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

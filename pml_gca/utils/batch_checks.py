"""Check embeddings and labels. Messages name the argument, what was found and what is expected."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def inside_transform() -> bool:
    """Return whether this is inside `torch.vmap` or another transform, which do not let a tensor's values be read."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_no_transform(name: str) -> None:
    """Raise inside `torch.vmap` and other transforms."""
    if inside_transform():
        raise TypeError(
            f"{name} cannot be read inside torch.vmap, torch.func.grad or another transform of torch.func: call "
            "pml_gca outside of it, one batch at a time, and take gradients by backward()"
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise if a tensor is sparse."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}; pass .to_dense()")


def count_unusable(values: Tensor, largest: float) -> Tensor:
    """Count the values that are NaN, infinite, or larger than `largest`: (3,) long, on their device."""
    with torch.no_grad():
        size = values.abs()
        kinds = torch.stack([size.isnan(), size == math.inf, size > largest])
        return kinds.flatten(1).sum(dim=1)


def check_counts(counts: Sequence[int], name: str, total: int, dtype: torch.dtype, largest: float) -> None:
    """Raise ValueError if some of `total` values cannot be used.

    Args:
        counts: from `count_unusable`, on the host.
        name: name of the argument, for the message.
        total: number of values.
        dtype: their dtype.
        largest: as for `count_unusable`.
    """
    nans, infinite, too_long = counts
    if nans or infinite:
        raise ValueError(f"{name} must be finite, got {nans} NaN and {infinite} infinite of {total} values")
    if too_long:
        raise ValueError(
            f"{name} must have a norm below {largest:.1e}, beyond which {dtype} or this generator's loss overflows; "
            f"got {too_long} of {total} values above it. Scale them down, or normalise them"
        )


def check_finite(values: Tensor, name: str, largest: float | None = None) -> None:
    """Raise ValueError if a value is NaN, infinite or too large; wait for the device of the values.

    Args:
        values: floating, of any shape.
        name: name of the argument, for the message.
        largest: largest allowed absolute value; `largest_value` of their dtype if None.
    """
    largest = largest_value(values.dtype) if largest is None else largest
    counts = count_unusable(values, largest).tolist()
    check_counts(counts, name, values.numel(), values.dtype, largest)


def largest_value(dtype: torch.dtype) -> float:
    """Return the largest value that embeddings of `dtype` may have; computations run in float32 or wider."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).max * 2.0**-20


def check_not_swapped(embeddings: object, labels: object, names: tuple[str, str] = ("embeddings", "labels")) -> None:
    """Raise TypeError if the first is a tensor of labels and the second one of embeddings."""
    if not (isinstance(embeddings, Tensor) and isinstance(labels, Tensor)):
        return
    like_labels = embeddings.ndim == 1 and not embeddings.is_floating_point()
    if like_labels and labels.ndim == 2 and labels.is_floating_point():
        raise TypeError(
            f"{names[0]} and {names[1]} are swapped: got {embeddings.dtype} of shape {tuple(embeddings.shape)} first, "
            f"and {labels.dtype} of shape {tuple(labels.shape)} second; expected {names[0]} first"
        )


def check_embeddings(
    embeddings: object, embedding_size: int, name: str = "embeddings", *, num_classes: int | None = None
) -> None:
    """Raise unless `embeddings` is a floating (N, `embedding_size`) tensor; its values are not read.

    With `num_classes` the message tells if that is the number of channels.
    """
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(embeddings).__name__}")
    check_no_transform(name)
    check_dense(name, embeddings)
    if not embeddings.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {embeddings.dtype}")
    if embeddings.ndim != 2:
        raise ValueError(
            f"{name} must be 2-D (batch_size, embedding_size), got {embeddings.ndim}-D, shape {tuple(embeddings.shape)}"
        )
    if embeddings.shape[1] != embedding_size:
        hint = ", its num_classes: are the two swapped? num_classes comes first, as in PML"
        hint = hint if embeddings.shape[1] == num_classes else ""
        raise ValueError(
            f"{name} must have {embedding_size} channels, the generator's embedding_size, got "
            f"{embeddings.shape[1]}{hint}"
        )


def check_labels(labels: object, num_embeddings: int, name: str = "labels", of: str = "embeddings") -> None:
    """Raise unless `labels` is a 1-D tensor of integers that fit into int64, one per embedding."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    check_dense(name, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {labels.dtype}; if its values are class numbers, pass .long()")
    if labels.ndim != 1:
        shape, hint = tuple(labels.shape), ""
        if labels.ndim == 2 and len(labels) == num_embeddings:
            one_hot = f"; if they are one-hot, pass {name}.argmax(dim=1)"
            hint = f"; pass {name}.squeeze(1)" if shape[1] == 1 else one_hot
        raise ValueError(f"{name} must be 1-D (batch_size,), got {labels.ndim}-D with shape {shape}{hint}")
    if len(labels) != num_embeddings:
        raise ValueError(f"{name} must be as many as {of}: expected {num_embeddings}, got {len(labels)}")
    # Larger values would wrap around, perhaps to a valid class. No other dtype is that wide.
    if labels.dtype == torch.uint64 and (largest := int(labels.cpu().numpy().max(initial=0))) >= 2**63:
        raise ValueError(f"{name} must fit into int64, got {largest}")


def as_long(value: Any) -> Any:
    """Return a tensor of integers as long, and anything else as it is; uint64 values wrap around, but stay distinct."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        return value
    return value.long()


def check_label_range(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise unless `labels` lie in [0, `num_classes`). Pass them on the host: this reads their values."""
    if len(labels) == 0:
        return
    values = labels.cpu().numpy()  # torch has no minimum for unsigned integers
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must lie in [0, num_classes) = [0, {num_classes}), got values from {low} to {high}. Give the "
            "generator the number of training classes, and number them from 0: by torch.unique(labels, "
            "return_inverse=True)[1] of all training labels, or in PML's trainers by dataset_labels=<labels of the "
            "training set> and set_min_label_to_zero=True. For a validation loss "
            "on other classes call loss.eval(): it is then the wrapped loss alone, which takes any labels if it has "
            "neither proxies nor class weights."
        )

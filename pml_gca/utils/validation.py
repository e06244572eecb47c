"""Checks of user input; each names the argument, what was found and what is expected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def check_number(name: str, value: object, *, minimum: float = 0.0) -> None:
    """Raise unless ``value`` is a finite number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not minimum <= float(value) < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least {minimum:g}, got {value}")


def check_positive_int(name: str, value: object, *, minimum: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_share(name: str, value: object) -> None:
    """Raise unless ``value`` is a number in [0, 1]."""
    check_number(name, value)
    if value > 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most 1, got {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_string(name: str, value: object) -> None:
    """Raise unless ``value`` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of the choices."""
    check_string(name, value)
    if value not in choices:
        raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def make_plain(settings: Any) -> None:
    """Python's numbers in the place of NumPy's in the fields of a dataclass, so that they can be written as JSON."""
    for own in fields(settings):
        value = getattr(settings, own.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, own.name, value.item())
        elif isinstance(value, Mapping):
            plain = {key: x.item() if isinstance(x, np.generic) else x for key, x in value.items()}
            object.__setattr__(settings, own.name, plain)


def check_functions(**functions: object) -> None:
    """Raise unless each is callable or None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None, got {type(value).__name__}")


def check_device(device: object) -> torch.device | None:
    """A device, of its name too; or None."""
    if device is None or isinstance(device, torch.device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"device must be a torch.device, its name or None, got {type(device).__name__}")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device must be a torch.device or its name, such as 'cpu' or 'cuda', got {device!r}"
        ) from None


def check_learning_rates(**rates: object) -> None:
    """Raise unless each is a finite number of at least 0, or a tensor of one, as torch allows."""
    for name, value in rates.items():
        if not isinstance(value, Tensor):
            check_number(name, value)
        elif value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one, got shape {tuple(value.shape)}")


def check_level(name: str, value: object) -> None:
    """Raise unless ``value`` is a number or a tensor of one, and not NaN; values on other devices are not read."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one, got shape {tuple(value.shape)}")
        if value.device.type != "cpu":
            return
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a tensor of one, got {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan; infinity stands for nothing seen so far")


def check_pml_arguments(arguments: Mapping[str, object]) -> None:
    """Raise unless arguments for PML's constructors are what they are for: PML takes any, and fails later or never."""
    for name in ("reducer", "embedding_regularizer", "distance"):
        value = arguments.get(name)
        if value is not None and not isinstance(value, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(value).__name__}")
    if arguments.get("collect_stats") is not None:
        check_flag("collect_stats", arguments["collect_stats"])
    if "embedding_reg_weight" in arguments:
        check_number("embedding_reg_weight", arguments["embedding_reg_weight"])


def check_no_transform(name: str) -> None:
    """Raise within ``torch.vmap`` and its like, where the values of a tensor cannot be looked at."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise TypeError(
            f"{name} cannot be looked at inside torch.vmap, torch.func.grad or another transform of torch.func: call "
            "pml_gca outside of it, one batch at a time, and take gradients by backward()"
        )


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise if a tensor is sparse."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {tensor.layout}; pass .to_dense()")


def count_unusable(values: Tensor, largest: float) -> Tensor:
    """Count the values that are NaN, infinite, or larger than ``largest``: (3,) long, on their device."""
    with torch.no_grad():
        size = values.abs()
        kinds = torch.stack([size.isnan(), size == math.inf, size > largest])
        return kinds.flatten(1).sum(dim=1)


def check_counts(counts: Sequence[int], name: str, total: int, dtype: torch.dtype, largest: float) -> None:
    """Raise ValueError if some of ``total`` values cannot be used.

    Args:
        counts: as from `count_unusable`, on the host.
        name: of the argument, for the message.
        total: how many values there are.
        dtype: of the values.
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
        name: of the argument, for the message.
        largest: the size that values may have; `largest_value` of their dtype if None.
    """
    largest = largest_value(values.dtype) if largest is None else largest
    counts = count_unusable(values, largest).tolist()
    check_counts(counts, name, values.numel(), values.dtype, largest)


def largest_value(dtype: torch.dtype) -> float:
    """The largest value that an embedding of ``dtype`` may have, which is computed with in float32 or wider."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).max * 2.0**-20


def check_embeddings(embeddings: object, embedding_size: int, name: str = "embeddings") -> None:
    """Raise unless ``embeddings`` is a floating (N, ``embedding_size``) tensor; its values are not looked at."""
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
        raise ValueError(
            f"{name} must have {embedding_size} channels, the generator's embedding_size, got {embeddings.shape[1]}"
        )


def check_labels(labels: object, num_embeddings: int, name: str = "labels", of: str = "embeddings") -> None:
    """Raise unless ``labels`` is a 1-D tensor of integers, signed or not, that fit into int64, one per embedding."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    check_dense(name, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {labels.dtype}; if its values are class numbers, pass .long()")
    if labels.ndim != 1:
        raise ValueError(f"{name} must be 1-D (batch_size,), got {labels.ndim}-D with shape {tuple(labels.shape)}")
    if len(labels) != num_embeddings:
        raise ValueError(f"{name} must be as many as {of}: expected {num_embeddings}, got {len(labels)}")
    # What does not fit would wrap around and could become a class; no other dtype is that wide.
    if labels.dtype == torch.uint64 and (largest := int(labels.cpu().numpy().max(initial=0))) >= 2**63:
        raise ValueError(f"{name} must fit into int64, got {largest}")


def as_long(value: Any) -> Any:
    """A tensor of integers as long, and all else as it is; what is unsigned and does not fit remains distinct."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        return value
    return value.long()


def check_label_range(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise unless ``labels``, best on the host, lie in [0, ``num_classes``)."""
    if len(labels) == 0:
        return
    values = labels.cpu().numpy()  # torch has no minimum of unsigned integers
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must lie in [0, num_classes) = [0, {num_classes}), got values from {low} to {high}. Give the "
            "generator the number of training classes, and let PML's trainers renumber labels from 0: pass "
            "dataset_labels=<labels of the training set> and set_min_label_to_zero=True. For a validation loss "
            "on other classes call loss.eval(): it is then the wrapped loss alone, of any labels."
        )

"""Check arguments of users. Messages name the argument, what was found and what is expected."""

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Value = TypeVar("Value")


def check_number(name: str, value: object, *, minimum: float = 0.0) -> None:
    """Raise unless `value` is a finite number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not minimum <= float(value) < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least {minimum:g}, got {value}")


def check_positive_int(name: str, value: object, *, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_int(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int in [low, high]. Raise TypeError for another type, ValueError outside the range."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError for anything but an integer
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, found {type(value).__name__}: {value!r}")
    if not low <= number <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], found {number}")
    return number


def check_share(name: str, value: object) -> None:
    """Raise unless `value` is a number in [0, 1]."""
    check_number(name, value)
    if value > 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most 1, got {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_string(name: str, value: object) -> None:
    """Raise unless `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of the choices."""
    check_string(name, value)
    if value not in choices:
        raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}")


def make_plain(settings: Any) -> None:
    """Replace NumPy's numbers in the fields of a dataclass by Python's, which can be written as JSON."""
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
    """Return a device, given as an object or by name, or None.

    Raises:
        TypeError, ValueError: `device` is neither, or torch does not know the name.
    """
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
    """Raise unless `value` is a number or a tensor of one, and not NaN; values on a GPU are not read."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one, got shape {tuple(value.shape)}")
        if value.device.type != "cpu":
            return
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a tensor of one, got {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan; infinity means that nothing was observed yet")


def check_pml_arguments(arguments: Mapping[str, object]) -> None:
    """Raise if arguments for PML's constructors have the wrong type: PML accepts any, and fails later or never."""
    for name in ("reducer", "embedding_regularizer", "distance"):
        value = arguments.get(name)
        if value is not None and not isinstance(value, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(value).__name__}")
    if arguments.get("collect_stats") is not None:
        check_flag("collect_stats", arguments["collect_stats"])
    if "embedding_reg_weight" in arguments:
        check_number("embedding_reg_weight", arguments["embedding_reg_weight"])


def first_of(names: Sequence[object], limit: int = 5) -> str:
    """Return the first `limit` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def count_of(count: int, what: str, several: str | None = None) -> str:
    """Return a number with its noun: "1 image", "2 images"; `several` is the plural if an s does not make it."""
    return f"{count} {what if count == 1 else several or what + 's'}"


class Named(dict[str, Value]):
    """Things by name; a name that is not there raises KeyError with the names that are."""

    def __missing__(self, name: object) -> Value:
        raise KeyError(f"no such name: {name!r}{suggestion(str(name), self)}; there are {', '.join(self)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint at the most similar known name, for the end of an error message; empty if none is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

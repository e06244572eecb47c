"""Class-disjoint splits of a list of classes, by a fixed rule without random numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

from ..utils.validation import check_string, count_of

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.4, 0.1, 0.5)


def check_split(split: object) -> str:
    """Return `split` if it names one, else raise TypeError or ValueError."""
    check_string("split", split)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, found {split!r}")
    return str(split)


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Return `fractions` as floats >= 0 (train and test > 0) that sum to 1, else raise TypeError or ValueError."""
    expected = "three numbers >= 0 (train, val, test) that sum to 1, of which only val may be 0"
    if isinstance(fractions, str) or not isinstance(fractions, Iterable):
        raise TypeError(f"fractions must be {expected}, found {type(fractions).__name__}: {fractions!r}")
    try:
        train, val, test = (float(f) for f in fractions)
    except (TypeError, ValueError):
        raise ValueError(f"fractions must be {expected}, found {fractions!r}") from None
    if not (train > 0 and val >= 0 and test > 0 and math.isclose(train + val + test, 1.0, abs_tol=1e-6)):
        raise ValueError(f"fractions must be {expected}, found {fractions!r}")
    return train, val, test


def split_sizes(count: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the numbers of train, val and test classes out of `count`.

    Val and test are rounded, and train takes the rest. Train and test then get at least 2 classes: with one there is
    nothing to tell apart. Val gets at least 1, unless its fraction is 0. Missing classes come from the largest split.

    Raises:
        ValueError: `count` is too small for that.
    """
    least = (2, 1 if fractions[1] > 0 else 0, 2)
    if count < sum(least):
        needed = ", ".join(f"{number} for {split}" for number, split in zip(least, SPLITS, strict=True))
        raise ValueError(
            f"{count_of(count, 'class', 'classes')} cannot be split; at least {sum(least)} are needed ({needed})"
        )
    val, test = round(count * fractions[1]), round(count * fractions[2])
    sizes = [count - val - test, val, test]
    while any(size < low for size, low in zip(sizes, least, strict=True)):
        short = next(i for i in range(3) if sizes[i] < least[i])
        spare = max(range(3), key=lambda i: sizes[i] - least[i])
        sizes[short] += 1
        sizes[spare] -= 1
    return sizes[0], sizes[1], sizes[2]


def split_classes(
    names: Sequence[str], split: str, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> list[int]:
    """Return the indices, ascending, of the `names` that belong to `split`.

    Names are sorted by the SHA-256 digest of `"<seed>:<name>"` in UTF-8. The first go to train, the next to val,
    the last to test. The result is the same on every machine and with every library version.
    """
    n_train, n_val, _ = split_sizes(len(names), fractions)

    def digest(i: int) -> bytes:
        return hashlib.sha256(f"{seed}:{names[i]}".encode("utf-8", "surrogateescape")).digest()

    order = sorted(range(len(names)), key=digest)
    bounds = {"train": (0, n_train), "val": (n_train, n_train + n_val), "test": (n_train + n_val, len(names))}
    start, stop = bounds[check_split(split)]
    return sorted(order[start:stop])

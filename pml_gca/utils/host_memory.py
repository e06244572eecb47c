"""The memory that the C library keeps between the steps of a training on the CPU."""

import ctypes
import functools
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30
"""Bytes that may stay free at the end of the heap."""
LARGEST_BLOCK = 2**25
"""Bytes of the largest block that is kept in the heap: the largest threshold that glibc chooses by itself."""


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GB of the memory that is freed; call it as often as you like.

    It would hand the memory of a step back to the system, which clears it page by page for the next step: a quarter of
    the time of a small step, 6% of a large one. Blocks of more than 32 MB are handed back all the same. If the
    environment sets one of these thresholds (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`),
    nothing is changed. Other C libraries than glibc decide by themselves.
    """
    if not is_glibc() or chosen_by_user():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Setting one threshold stops glibc from adapting both.
    mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT)


def is_glibc() -> bool:
    """Return whether the process runs on the GNU C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False


def chosen_by_user() -> bool:
    """Return whether the environment says when glibc hands memory back."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
    return any(name in os.environ for name in names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")

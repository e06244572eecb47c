"""The memory that the C library keeps between the steps of a training on the CPU."""

import ctypes
import functools
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30
"""Bytes that may stay free at the end of the heap."""
LARGEST_BLOCK = 2**25
"""Bytes from which blocks are no part of the heap: the largest threshold that glibc chooses by itself."""


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory, up to 1 GB at the end of its heap; call it as often as you like.

    It would hand the memory of a step back to the system, which clears it page by page for the next step: a quarter of
    the time of a small step. This holds for the whole process, and for those forked from it. Most blocks of 32 MB and
    more are handed back all the same, and threads other than the main one have heaps that keep less. If the
    environment says how much is kept (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TOP_PAD_`,
    `MALLOC_MMAP_MAX_`, or these in `GLIBC_TUNABLES`), nothing is changed. Other C libraries than glibc decide by
    themselves.
    """
    if not is_glibc() or chosen_by_user():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Setting one threshold stops glibc from adapting both: where it refuses the first one, leave the second.
    if mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK):
        mallopt(M_TRIM_THRESHOLD, KEPT)


def is_glibc() -> bool:
    """Return whether the process runs on the GNU C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False


def chosen_by_user() -> bool:
    """Return whether the environment says when glibc hands memory back."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables
        for name in ("trim_threshold", "mmap_threshold", "top_pad", "mmap_max")
    )

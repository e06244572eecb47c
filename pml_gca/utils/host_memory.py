"""The memory that the C library keeps between the steps of a training on the CPU."""

import functools

import torch

LARGEST_BLOCK = 2**25 - 2**16  # bytes; glibc learns from blocks of up to 32 MB


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep some of the memory that is freed; call it as often as you like.

    It would hand the memory of a step back to the system, which clears it page by page for the next step: a quarter of
    the time of a small one. Freeing one large block teaches glibc to keep free blocks of up to 32 MB, and up to 64 MB
    at the end of its heap. Nothing is written to the block, so that it takes no memory. Other C libraries decide by
    themselves.
    """
    torch.empty(LARGEST_BLOCK, dtype=torch.uint8, device="cpu")

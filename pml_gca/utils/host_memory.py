"""The memory that the C library keeps between the steps of a training on the CPU."""

import functools

import torch

LARGEST_BLOCK = 2**25 - 2**16  # bytes; glibc learns from blocks of up to 32 MB


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep some memory that is freed, once per process: up to 64 MB with glibc.

    It would hand the memory of each step back to the system, which then clears it page by page for the next step: a
    third of the time of a small step. Freeing one large block teaches glibc to keep more. The block is never written,
    so that it takes no memory. Other C libraries decide by themselves.
    """
    torch.empty(LARGEST_BLOCK, dtype=torch.uint8, device="cpu")

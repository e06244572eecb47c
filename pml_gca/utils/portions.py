"""How many rows to compute at a time: so few that they stay in a processor's cache, so many that they fill a GPU."""

import torch

CPU_VALUES = 2**20
GPU_VALUES = 2**24


def rows_at_a_time(width: int, device: torch.device, values: int, on_gpu: int = GPU_VALUES) -> int:
    """Return how many rows of `width` values to compute at a time, at least 1.

    Args:
        width: values of a row.
        device: that computes them. Work queued for a GPU costs the host the same for few rows as for many.
        values: at a time on a CPU.
        on_gpu: at a time on any other device.
    """
    return max((values if device.type == "cpu" else on_gpu) // max(width, 1), 1)

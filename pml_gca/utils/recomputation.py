"""Noticing activation checkpointing, which calls a function a second time during the backward pass."""

import sys
from types import FrameType

import torch

CHECKPOINT = "torch.utils.checkpoint"  # the module whose functions are on the stack then, in both of its forms


def check_no_recomputation(name: str) -> None:
    """Raise within a function that is, or is to be, computed anew in the backward pass.

    What training mode counts (levels, statistics of batch norms, records) would be counted twice, and the second call
    would meet other levels than the first, so that its gradients belong to another loss.

    Raises:
        RuntimeError: ``name`` is called inside ``torch.utils.checkpoint``, or in a backward pass, where other libraries
            recompute.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != CHECKPOINT:
        frame = frame.f_back
    if frame is not None or torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{name} was called inside activation checkpointing (torch.utils.checkpoint or the like), which computes "
            "it a second time in the backward pass: in training its levels and statistics would move twice, and its "
            "gradients be wrong. Call it outside: loss(checkpoint(model, images, use_reentrant=False), labels). To "
            "save memory in GlobalCorrelationGenerator, set its edge_chunk_size"
        )

"""Running statistics: kept in float32 or wider, restored after errors, and never counted twice."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .callers import called_from

CHECKPOINT = "torch.utils.checkpoint"  # both forms of checkpointing call functions of this module


class WideBuffers(nn.Module):
    """A module whose floating buffers are float32 or wider, with any default dtype and any dtype of the model.

    In half precision a running mean stalls, because its steps are rounded away, or it overflows.
    """

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register `tensor`, widened to float32 if it is narrower."""
        super().register_buffer(name, tensor if tensor is None else widened(tensor), persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WideBuffers":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and widened(new).dtype != new.dtype:
                self._buffers[name] = old.to(new.device)
        return self


def widened(tensor: Tensor) -> Tensor:
    """Return a floating tensor in float32 if it is narrower; other tensors as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


@contextmanager
def restored_on_error(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of `buffers` if an error leaves this context: a refused batch leaves no trace."""
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise


def check_not_recomputed(name: str) -> None:
    """Raise inside a function that is, or will be, recomputed in the backward pass.

    Training would then count levels, statistics of batch norms and records twice. The second call would also see other
    levels than the first, and give the gradients of another loss.

    Raises:
        RuntimeError: `name` is called inside `torch.utils.checkpoint`, or in a backward pass, where other libraries
            recompute.
    """
    if called_from(CHECKPOINT) or torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{name} was called inside activation checkpointing (torch.utils.checkpoint or similar), which recomputes "
            "it in the backward pass: in training its levels and statistics would move twice, and its gradients would "
            "be wrong. Call it outside: loss(checkpoint(model, images, use_reentrant=False), labels). To save memory "
            "in GlobalCorrelationGenerator, set its edge_chunk_size"
        )

"""Running statistics that keep their digits in a model of half precision."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WideBuffers(nn.Module):
    """A module whose floating buffers are float32 or wider, whatever the default dtype and the dtype of the model.

    In half precision a running mean stalls, as its steps are rounded away, or overflows.
    """

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register ``tensor``, widened to float32 if need be."""
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
    """``tensor``, in float32 where it was narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


@contextmanager
def restored_on_error(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Give ``buffers`` back the values they had, if what is done within fails: a refused batch leaves no trace."""
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise

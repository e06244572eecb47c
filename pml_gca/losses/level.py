"""Running levels of losses, which decide how far negatives are pulled and how much they count."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Level(nn.Module):
    """Running mean of a loss, infinite until something was observed; lives in buffers, so that runs resume exactly.

    Args:
        momentum: weight of the past in the bias-corrected exponential mean, in [0, 1). ``None`` takes the published
            schedule: the mean of the previous epoch, set by :meth:`end_epoch`.
    """

    value: Tensor
    total: Tensor
    weight: Tensor

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.tensor(float("inf")))
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Level":
        """Follow to a device, but not to a dtype: in half precision a running mean stalls or overflows."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            assert buffer is not None
            assert moved is not None
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        """Take in a scalar; one that is not finite is passed over."""
        keep = 1.0 if self.momentum is None else self.momentum
        new = 1.0 if self.momentum is None else 1.0 - self.momentum
        loss = loss.detach().to(self.total)
        seen = torch.isfinite(loss)
        self.total.copy_(torch.where(seen, keep * self.total + new * loss, self.total))
        self.weight.copy_(torch.where(seen, keep * self.weight + new, self.weight))
        if self.momentum is not None:
            self.value.copy_(torch.where(seen, self.total / self.weight, self.value))

    @torch.no_grad()
    def end_epoch(self) -> None:
        """With ``momentum=None``: the mean of what was observed becomes the level, and a new epoch begins."""
        if self.momentum is None:
            self.value.copy_(torch.where(self.weight > 0, self.total / self.weight, self.value))
            self.total.zero_()
            self.weight.zero_()

"""Copy small tensors between host and device without stopping either."""

from collections.abc import Sequence

import torch
from torch import Tensor


class HostCopy:
    """A copy of a small tensor to the host, started now, while device and host continue.

    Work queued between the start of the copy and `wait` keeps the device busy during the wait.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._values = tensor.detach().cpu()

    @property
    def ready(self) -> bool:
        """Whether `wait` returns at once, because the values were on the host from the start."""
        return self._event is None

    def wait(self) -> Tensor:
        """Return the values on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without waiting for work that is queued there."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # copying from pageable memory may wait
    return tensor.to(device, non_blocking=True)


def together_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy host tensors of whole numbers or truth values to a device, in one copy, as `to_device` does.

    The results share no memory: one may be kept, or changed, without the others.
    """
    sent = to_device(torch.cat([x.flatten().long() for x in tensors]), device)
    parts = sent.split([x.numel() for x in tensors])
    return [part.view(x.shape).to(x.dtype, copy=True) for part, x in zip(parts, tensors, strict=True)]

"""Record how losses with a generator are called in an iteration's first step, and repeat the calls in its second."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..losses import HardNegativeGenerationLoss


@dataclass
class RecordedCall:
    """One call of a loss in the first step.

    Attributes:
        loss: the loss that was called.
        args, kwargs: its arguments; tensors are detached.
        weight: d total / d loss, the product of all weights of the loss in the total that was trained. None if the
            value was not part of it.
    """

    loss: HardNegativeGenerationLoss
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weight: Tensor | None = None

    def add_to_weight(self, gradient: Tensor) -> None:
        """Add the gradient of the loss's value; a hook of that value."""
        self.weight = gradient.detach() if self.weight is None else self.weight + gradient.detach()

    def repeat(self) -> Tensor:
        """Call the loss with the same arguments, and return the value with the same weight."""
        assert self.weight is not None
        value: Tensor = self.weight * self.loss(*self.args, **self.kwargs)
        return value


@contextmanager
def recording(loss: HardNegativeGenerationLoss, calls: list[RecordedCall]) -> Iterator[None]:
    """Append every training call of `loss` to `calls` within this context."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
        if loss.training and value.requires_grad:
            # One tensor passed twice stays one tensor.
            detached = {id(v): v.detach() for v in (*args, *kwargs.values()) if isinstance(v, Tensor)}
            call = RecordedCall(
                loss,
                tuple(detached.get(id(v), v) for v in args),
                {name: detached.get(id(v), v) for name, v in kwargs.items()},
            )
            value.register_hook(call.add_to_weight)
            calls.append(call)

    handle = loss.register_forward_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def repeat_calls(metric_loss: nn.Module, calls: list[RecordedCall]) -> Tensor:
    """Repeat calls of losses that `metric_loss` is or contains, without calling anything else in it.

    `DistributedDataParallel` averages only the gradients of its own forward pass. Losses inside it are therefore
    called within a forward pass of it.

    Returns:
        The sum of the values; `calls` must not be empty.
    """
    values, rest = [], calls
    for module in metric_loss.modules():
        if isinstance(module, DistributedDataParallel):
            inside = set(module.modules())
            own, rest = [c for c in rest if c.loss in inside], [c for c in rest if c.loss not in inside]
            if own:
                values.append(_repeat_within(module, own))
    return _total([*values, *(call.repeat() for call in rest)])


def _repeat_within(parallel: DistributedDataParallel, calls: list[RecordedCall]) -> Tensor:
    """Repeat the calls as the forward pass of `parallel`."""
    inner: nn.Module = parallel.module

    def repeated() -> Tensor:
        del inner.forward  # a recorded loss may be `inner` itself
        return _total([call.repeat() for call in calls])

    inner.forward = repeated  # on this instance, not its class
    try:
        value: Tensor = parallel()
    finally:
        vars(inner).pop("forward", None)
    return value


def _total(values: list[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0])

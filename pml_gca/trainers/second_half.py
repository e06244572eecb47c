"""What the second half of an iteration takes over from the first, wherever in a metric loss a generator is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..losses import HardNegativeGenerationLoss


@dataclass
class FirstHalf:
    """A call of a loss in the first half.

    Attributes:
        loss: that was called.
        args, kwargs: what with; tensors are detached.
        factor: d total / d loss: the product of all weights that the loss has in what was trained. None if it was not.
    """

    loss: HardNegativeGenerationLoss
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    factor: Tensor | None = field(default=None)

    @classmethod
    @contextmanager
    def kept_of(cls, loss: HardNegativeGenerationLoss, calls: list["FirstHalf"]) -> Iterator[None]:
        """Within this context, every call of ``loss`` in training is added to ``calls``."""

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
            if loss.training and value.requires_grad:
                detached = {id(v): v.detach() for v in (*args, *kwargs.values()) if isinstance(v, Tensor)}
                call = cls(
                    loss,
                    tuple(detached.get(id(v), v) for v in args),
                    {name: detached.get(id(v), v) for name, v in kwargs.items()},
                )
                value.register_hook(call.add_to_factor)
                calls.append(call)

        handle = loss.register_forward_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def add_to_factor(self, gradient: Tensor) -> None:
        """Hook of the loss's value."""
        self.factor = gradient.detach() if self.factor is None else self.factor + gradient.detach()

    def again(self) -> Tensor:
        """The loss, weighted as before, called with the same."""
        assert self.factor is not None
        value: Tensor = self.factor * self.loss(*self.args, **self.kwargs)
        return value


def call_through(metric_loss: nn.Module, calls: list[FirstHalf]) -> Tensor:
    """Repeat calls of losses that ``metric_loss`` is or holds, and nothing else of it; their sum.

    ``DistributedDataParallel`` averages the gradients of what runs as its own forward pass, and so it does here.
    """
    values, rest = [], calls
    for module in metric_loss.modules():
        if isinstance(module, DistributedDataParallel):
            inside = set(module.modules())
            own, rest = [c for c in rest if c.loss in inside], [c for c in rest if c.loss not in inside]
            if own:
                values.append(_forward_of(module, own))
    return total([*values, *(call.again() for call in rest)])


def total(values: list[Tensor]) -> Tensor:
    """Their sum; there is at least one."""
    return sum(values[1:], start=values[0])


def _forward_of(parallel: DistributedDataParallel, calls: list[FirstHalf]) -> Tensor:
    inner: nn.Module = parallel.module
    inner.forward = lambda: total([call.again() for call in calls])  # of this object, not its class
    try:
        value: Tensor = parallel()
    finally:
        del inner.forward
    return value

"""Running means of losses. They decide how far negatives are pulled and how much they count."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..generators.classified_generator import ClassifiedGenerator
from ..utils.records import hide_modules_from_records
from ..utils.running_statistics import WideBuffers, widened
from ..utils.validation import check_number

MISSING = (
    "{name}.has_objective is True, but it returns no objective 'generation_loss'. The level of that loss decides how "
    "much the negatives count, so they never count. Return it; or set {name}.has_objective = False: negatives then "
    "count fully, and parameters are trained all the same."
)
UNDECLARED = (
    "{name}.has_objective is False, but it returns the objective 'generation_loss'. Its negatives count fully from the "
    "first batch, and AlternatingTrainer does not train that objective. Set {name}.has_objective = True; or give the "
    "objective another name."
)


class RunningMean(WideBuffers):
    """Running mean of a loss; infinite until a value was observed.

    It is kept in buffers, which makes a resumed run equal an unbroken one.

    Args:
        momentum: weight of the past in the bias-corrected exponential mean, in [0, 1). `None` for the published
            schedule: the mean of the previous epoch, set by `end_epoch`.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.momentum = momentum
        self._buffers["value"] = widened(torch.tensor(float("inf")))  # the property `value` reads it
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    @property
    def value(self) -> Tensor:
        """The mean, 0-dimensional.

        Averaging two models with infinite means gives NaN (inf - inf). The value is then computed from the averaged
        sums; infinite if they are empty.
        """
        value = self._value
        with torch.no_grad():
            mean = (self.total / self.weight).nan_to_num(nan=float("inf"))
            torch.where(value.isnan(), mean, value, out=value)
        return value

    @property
    def _value(self) -> Tensor:
        """The buffer; NaN in an averaged model."""
        value = self._buffers["value"]
        assert value is not None
        return value

    def _save_to_state_dict(self, *args: Any) -> None:
        _ = self.value  # replaces NaN
        super()._save_to_state_dict(*args)

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        """Add a scalar to the mean; ignore it if it is not finite."""
        keep = 1.0 if self.momentum is None else self.momentum
        new = 1.0 if self.momentum is None else 1.0 - self.momentum
        value, loss = self._value, loss.detach().to(self.total)
        seen = torch.isfinite(loss)
        torch.where(seen, keep * self.total + new * loss, self.total, out=self.total)
        torch.where(seen, keep * self.weight + new, self.weight, out=self.weight)
        if self.momentum is not None:
            torch.where(seen, self.total / self.weight, value, out=value)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Make the mean of this epoch the value and start a new epoch, with `momentum=None`; else do nothing."""
        if self.momentum is None:
            value = self._value
            torch.where(self.weight > 0, self.total / self.weight, value, out=value)
            self.total.zero_()
            self.weight.zero_()


class LossLevels(nn.Module):
    """The running means of a loss: `metric`, L of the metric loss, and `generator`, G of the generator's loss.

    Args:
        momentum: as for `RunningMean`.

    Raises:
        TypeError, ValueError: `momentum` is neither None nor in [0, 1).
    """

    metric: RunningMean
    generator: RunningMean

    def __init__(self, momentum: float | None) -> None:
        if momentum is not None:
            check_number("level_momentum", momentum)
            if momentum >= 1:
                raise ValueError(f"level_momentum must be below 1, got {momentum}")
        super().__init__()
        self.metric, self.generator = RunningMean(momentum), RunningMean(momentum)
        hide_modules_from_records(self)
        self._warned = False

    def end_epoch(self) -> None:
        """End the epoch of both means."""
        self.metric.end_epoch()
        self.generator.end_epoch()

    def observe_generator(self, generator: BaseGenerator, objectives: Mapping[str, Tensor], phase: str) -> None:
        """Add the generator's loss to its mean, but not in the phase `"embedding"`.

        Warn once if `has_objective` is not what the generator returns.
        """
        declared, returned = generator.has_objective, "generation_loss" in objectives
        if returned and phase != "embedding":
            self.generator.observe(objectives["generation_loss"])
        missing = declared and not returned and phase != "embedding" and generator.training
        if self._warned or not (missing or (returned and not declared)):
            return
        self._warned = True
        inside = generator.generator if isinstance(generator, ClassifiedGenerator) else generator
        name = type(inside).__name__
        warnings.warn((MISSING if missing else UNDECLARED).format(name=name), UserWarning, stacklevel=5)


def synthetic_weight(generator_level: Tensor, beta: float) -> Tensor:
    """Compute 1 − e^{−β/G}, the weight of the synthetic loss: 0 for an infinite level, 1 for a level of 0 or below."""
    level = generator_level.clamp_min(torch.finfo(generator_level.dtype).tiny)
    return -torch.expm1(-beta / level)

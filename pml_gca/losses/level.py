"""Running levels of losses, which decide how far negatives are pulled and how much they count."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..utils.records import hide_modules_from_records
from ..utils.validation import check_number
from ..utils.wide_buffers import WideBuffers, widened


class Level(WideBuffers):
    """Running mean of a loss, infinite until something was observed; lives in buffers, so that runs resume exactly.

    Args:
        momentum: weight of the past in the bias-corrected exponential mean, in [0, 1). ``None`` takes the published
            schedule: the mean of the previous epoch, set by `end_epoch`.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.momentum = momentum
        self._buffers["value"] = widened(torch.tensor(float("inf")))  # a property reads it
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    @property
    def value(self) -> Tensor:
        """The level, 0-dimensional.

        Averages of models take the mean of two infinite levels, which is NaN: the level is then that of the averaged
        sums, infinite if these are empty.
        """
        value = self._value
        with torch.no_grad():
            mean = (self.total / self.weight).nan_to_num(nan=float("inf"))
            torch.where(value.isnan(), mean, value, out=value)
        return value

    @property
    def _value(self) -> Tensor:
        """The level as it is kept, NaN in an averaged model."""
        value = self._buffers["value"]
        assert value is not None
        return value

    def _save_to_state_dict(self, *args: Any) -> None:
        _ = self.value
        super()._save_to_state_dict(*args)

    @torch.no_grad()
    def observe(self, loss: Tensor) -> None:
        """Take in a scalar; one that is not finite is passed over."""
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
        """With ``momentum=None``: the mean of what was observed becomes the level, and a new epoch begins."""
        if self.momentum is None:
            value = self._value
            torch.where(self.weight > 0, self.total / self.weight, value, out=value)
            self.total.zero_()
            self.weight.zero_()


class LossLevels(nn.ModuleDict):
    """L of the metric loss, ``"metric"``, and G of the generator's, ``"generator"``.

    Raises:
        TypeError, ValueError: ``momentum`` is neither None nor in [0, 1).
    """

    def __init__(self, momentum: float | None) -> None:
        if momentum is not None:
            check_number("level_momentum", momentum)
            if momentum >= 1:
                raise ValueError(f"level_momentum must be below 1, got {momentum}")
        super().__init__({"metric": Level(momentum), "generator": Level(momentum)})
        hide_modules_from_records(self)

    def __getitem__(self, name: str) -> Level:
        level = super().__getitem__(name)
        assert isinstance(level, Level)
        return level

    def end_epoch(self) -> None:
        """Of both."""
        for name in self:
            self[name].end_epoch()


class FollowsLevels:
    """A loss with ``levels``, and what follows from them."""

    levels: LossLevels
    generator: BaseGenerator
    synthetic_beta: float
    _warned_of_no_level = False

    @property
    def metric_level(self) -> Tensor:
        """L, running mean of the metric loss; a 0-dimensional tensor, infinite before anything was observed."""
        return self.levels["metric"].value

    @property
    def generator_level(self) -> Tensor:
        """G, running mean of the generator's loss; a 0-dimensional tensor, infinite before anything was observed."""
        return self.levels["generator"].value

    def end_epoch(self) -> None:
        """With ``level_momentum=None``: the epoch's means become the levels of the next."""
        self.levels.end_epoch()

    def observe_generator(self, objectives: Mapping[str, Tensor]) -> None:
        """Let G follow the generator's loss; say once that there is none, and that no negative will ever count."""
        if "generation_loss" in objectives:
            self.levels["generator"].observe(objectives["generation_loss"])
        elif self.generator.has_objective and self.generator.training and not self._warned_of_no_level:
            self._warned_of_no_level = True
            name = type(self.generator).__name__
            warnings.warn(
                f"{name}.has_objective is True, but it returns no objective 'generation_loss'. The level of that loss "
                "decides how much the negatives count, so they never count. Return it; or set "
                f"{name}.has_objective = False: negatives then count fully, and parameters are trained all the same.",
                UserWarning,
                stacklevel=5,
            )

    def synthetic_weight_at(self, generator_level: Tensor) -> Tensor:
        """1 − e^{−β/G}: 0 for an infinite level, 1 for a level of 0 or below, or without an objective."""
        if not self.generator.has_objective:
            return torch.ones_like(generator_level)
        level = generator_level.clamp_min(torch.finfo(generator_level.dtype).tiny)
        return -torch.expm1(-self.synthetic_beta / level)

"""What a training loop asks of a loss with a generator: levels, phases, optimizer groups, clipping."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..generators.base_generator import BaseGenerator
from ..generators.batch import PHASES
from ..utils.validation import check_learning_rates, check_number
from .levels import LossLevels
from .logs import LoggedLoss


class ScheduledLoss(LoggedLoss):
    """A loss with a generator, as a training loop sees it. A subclass sets `generator` and `levels`."""

    generator: BaseGenerator
    levels: LossLevels
    loss: nn.Module
    _phase: str = "all"

    @property
    def metric_level(self) -> Tensor:
        """L, running mean of the metric loss: 0-dimensional, infinite before anything was observed."""
        return self.levels.metric.value

    @property
    def generator_level(self) -> Tensor:
        """G, running mean of the generator's loss: 0-dimensional, infinite before anything was observed."""
        return self.levels.generator.value

    def end_epoch(self) -> None:
        """Make the means of this epoch the levels of the next, with `level_momentum=None`; else do nothing."""
        self.levels.end_epoch()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Compute one part of the loss within this context, as the published alternating schedule requires.

        `"embedding"` omits J_gen, the generator's `generation_loss`. `"generation"` is J_gen alone; call it with the
        same batch, detached, after the first part was stepped. `AlternatingTrainer` does this.

        Raises:
            ValueError: `name` is neither of them, nor `"all"`.
        """
        if name not in PHASES:
            raise ValueError(f"name must be one of {', '.join(PHASES)}, got {name!r}")
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def parameter_groups(
        self, lr: float, *, classifier_lr: float = 1e-3, loss_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Return groups for the optimizer that PML's trainers call `metric_loss_optimizer`.

        Args:
            lr: learning rate of the generator.
            classifier_lr: learning rate of its auxiliary classifier.
            loss_lr: learning rate of the wrapped loss's own parameters, such as proxies; `lr` if None.

        Returns:
            One group without parameters if neither the generator nor the wrapped loss has any: an optimizer takes it,
            and does nothing. A gradient scaler refuses to step an optimizer of nothing else: leave it out there.
        """
        loss_lr = lr if loss_lr is None else loss_lr
        check_learning_rates(lr=lr, classifier_lr=classifier_lr, loss_lr=loss_lr)
        groups = self.generator.parameter_groups(lr, classifier_lr=classifier_lr)
        groups.append({"params": list(self.loss.parameters()), "lr": loss_lr})
        return [group for group in groups if group["params"]] or groups[:1]

    def clip_grad_norm_(self, max_norm: float) -> dict[str, Tensor]:
        """Scale down the gradients of each group of `parameter_groups` whose norm is larger than `max_norm`.

        Each group is clipped on its own: the generator, its classifier, the wrapped loss's own parameters. Call it
        after `backward()`, and after unscaling if there is a gradient scaler. Clip the network separately. The
        generator's gradient is often many times as large, and one common norm would shrink the network's with it.

        `torch.nn.utils.clip_grad_norm_` does the work, and also takes parameters that `fully_shard` has sharded. It
        returns the norm of these as a DTensor: read it with `full_tensor()`. A loss inside the older
        `FullyShardedDataParallel` is clipped by that module's own method.

        Args:
            max_norm: the largest Euclidean norm a group may keep, above 0.

        Returns:
            The norm of each group before clipping, 0-dimensional, under the name of the module that holds it, such as
            `generator.propagation`. 0 for a group without gradients. Empty if nothing can learn.

        Raises:
            TypeError, ValueError: `max_norm` is no finite number above 0.
        """
        check_number("max_norm", max_norm)
        if max_norm == 0:
            raise ValueError("max_norm must be above 0, got 0: nothing would learn")
        groups = [group["params"] for group in self.parameter_groups(lr=0.0) if group["params"]]
        names = common_modules(self, groups)
        return {name: clip_grad_norm_(group, max_norm) for name, group in zip(names, groups, strict=True)}


def common_modules(module: nn.Module, groups: list[list[nn.Parameter]]) -> list[str]:
    """Return the name of the innermost module that holds all parameters of each group; numbered if it repeats."""
    names = {parameter: name.split(".")[:-1] for name, parameter in module.named_parameters()}
    found: list[str] = []
    for number, group in enumerate(groups):
        levels = zip(*(names[parameter] for parameter in group), strict=False)  # as deep as the shallowest
        name = ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
        found.append(name if name not in found else f"{name}_{number}")
    return found

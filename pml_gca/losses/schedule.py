"""What a training loop asks of a loss with a generator: levels, phases, optimizer groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..generators.batch import PHASES
from ..utils.validation import check_learning_rates
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
            An empty list if neither the generator nor the wrapped loss has parameters: no optimizer is needed.
        """
        loss_lr = lr if loss_lr is None else loss_lr
        check_learning_rates(lr=lr, classifier_lr=classifier_lr, loss_lr=loss_lr)
        groups, own = self.generator.parameter_groups(lr, classifier_lr=classifier_lr), list(self.loss.parameters())
        return [*groups, {"params": own, "lr": loss_lr}] if own else groups

"""The parts of a loss with a generator, below the progress bar of PML's trainers."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from ..utils.validation import check_functions
from .autocast_trainer import generation_losses

SHOWN = ("metric_loss", "synthetic_loss", "generator_loss")


class LossLine:
    """Show the metric loss below the progress bar: an `end_of_iteration_hook` for any of PML's trainers.

    PML's bar shows the sum of all losses, and nothing can be added to it. With a generator the metric loss is a small
    part of that sum. In a terminal a second line therefore shows the loss's parts while it trains. At the end of each
    epoch the line is written once more, to stay. If the metric loss has no generator there is no line.

    Args:
        hook: another `end_of_iteration_hook`, such as that of PML's `HookContainer`; it is called first.

    Raises:
        TypeError: `hook` is neither a function nor None.

    Example:
        >>> from pml_gca.trainers import LossLine
        >>> hooks = {"end_of_iteration_hook": LossLine()}  # arguments for a trainer
    """

    def __init__(self, hook: Callable[[Any], object] | None = None) -> None:
        check_functions(hook=hook)
        self.hook = hook
        self._bar: Any = None

    def __call__(self, trainer: Any) -> None:
        """Show the parts of the iteration that `trainer` has just made."""
        if self.hook is not None:
            self.hook(trainer)
        text = loss_text(trainer.loss_funcs.get("metric_loss"))
        if not text:
            return
        if self._bar is None:  # below PML's; not in files, where each change would be a line
            self._bar = tqdm(desc=text, bar_format="{desc}", position=1, leave=False, disable=None)
        self._bar.set_description_str(text, refresh=False)
        self._bar.update()
        if trainer.iteration == trainer.iterations_per_epoch - 1:
            self._bar.close()
            self._bar = None
            tqdm.write(f"epoch {trainer.epoch}: {text}", file=sys.stderr)


def loss_text(metric_loss: Any) -> str:
    """Return the parts of each loss with a generator that `metric_loss` is or contains; empty if there is none."""
    parts = []
    for loss in generation_losses(metric_loss) if metric_loss is not None else ():
        found = loss.logs()
        parts.append(" ".join(f"{name}={found[name]:.4g}" for name in SHOWN if name in found))
    return " | ".join(part for part in parts if part)

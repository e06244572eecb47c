"""Noticing that nobody trains the generator."""

import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class OptimizerWatch:
    """Warn once if optimizers step, again and again, and none of them holds the given parameters.

    PML's trainers say nothing when a loss has no optimizer; its gradients then pile up unused. Optimizers are watched
    rather than gradients, so that accumulating gradients over many batches raises no false alarm. The watch ends with
    its first finding, one way or the other.
    """

    PATIENCE = 2  # batches trained without the parameters before the alarm

    def __init__(self) -> None:
        self._finished = False
        self._watched: set[int] = set()
        self._others_stepped = False
        self._missed = 0

    def begin_batch(self, parameters: Iterable[torch.nn.Parameter], message: str) -> None:
        """Call once per training batch, before its optimizers step."""
        if not self._finished:
            learned = [p for p in parameters if p.requires_grad]
            self._watched = {id(p) for p in learned}  # identities keep nothing alive
            # An optimizer that holds them clears their gradients, even where a GradScaler skipped its step.
            self._missed += self._others_stepped and any(p.grad is not None for p in learned)
            self._others_stepped = False
            alarm = self._missed >= self.PATIENCE
            self._finished = alarm or not self._watched
            if not self._finished:
                _watches.add(self)
            if alarm:
                warnings.warn(message, UserWarning, stacklevel=4)
        _keep_hook_while_needed()

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Some optimizer, anywhere, has stepped."""
        if any(id(p) in self._watched for group in optimizer.param_groups for p in group["params"]):
            self._finished = True
        else:
            self._others_stepped = True

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a loaded pickle, starts a watch of its own."""
        return dict(OptimizerWatch().__dict__)


_watches: WeakSet[OptimizerWatch] = WeakSet()
_hook: Any = None


def _keep_hook_while_needed() -> None:
    """One hook serves all watches. It is not removed from within itself: torch is iterating over the hooks then."""
    global _hook
    for watch in [watch for watch in _watches if watch._finished]:
        _watches.discard(watch)
    if _watches and _hook is None:
        _hook = register_optimizer_step_post_hook(_tell_watches)
    elif not _watches and _hook is not None:
        _hook.remove()
        _hook = None


def _tell_watches(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for watch in list(_watches):
        watch.optimizer_stepped(optimizer)

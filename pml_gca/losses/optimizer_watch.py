"""Noticing that nobody trains the generator."""

import warnings
from collections.abc import Iterable
from typing import Any

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
        self._handle: Any = None
        self._finished = False
        self._others_stepped = False
        self._missed = 0

    def begin_batch(self, parameters: Iterable[torch.nn.Parameter], message: str) -> None:
        """Call once per training batch, before its optimizers step."""
        if self._finished:
            return
        if self._handle is None:
            # The identities are enough, and keep nothing alive.
            watched = {id(p) for p in parameters if p.requires_grad}
            if not watched:
                self._finish()
                return
            self._handle = register_optimizer_step_post_hook(
                lambda optimizer, args, kwargs: self._stepped(optimizer, watched)
            )
        elif self._others_stepped:
            self._others_stepped = False
            self._missed += 1
            if self._missed >= self.PATIENCE:
                self._finish()
                warnings.warn(message, UserWarning, stacklevel=2)

    def _stepped(self, optimizer: torch.optim.Optimizer, watched: set[int]) -> None:
        if any(id(p) in watched for group in optimizer.param_groups for p in group["params"]):
            self._finish()
        else:
            self._others_stepped = True

    def _finish(self) -> None:
        self._finished = True
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a loaded pickle, starts a watch of its own."""
        return {**OptimizerWatch().__dict__}

    def __del__(self) -> None:
        if self._handle is not None:
            self._handle.remove()

"""Warn if no optimizer trains the generator, or if a frozen loss generates nothing."""

import gc
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from pytorch_metric_learning.trainers import BaseTrainer, DeepAdversarialMetricLearning
from pytorch_metric_learning.utils.common_functions import return_input
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

PATIENCE = 2  # batches before a warning
SAMPLE_SIZE = 64  # values of each parameter that are compared

NO_OPTIMIZER = (
    "Optimizers step, but so far none that holds the {parameters} of HardNegativeGenerationLoss: {these} not "
    'learn. If they are in no optimizer, pass one more to PML\'s trainer, optimizers={{..., "metric_loss_optimizer": '
    "AdamW(loss.parameter_groups(lr=1.5e-4))}}, or add loss.parameter_groups(...) to the optimizer of your own loop."
)
NEVER_STEPPED = (
    "DeepAdversarialMetricLearning steps no optimizer of a loss, even if it has one. The {parameters} of "
    "HardNegativeGenerationLoss are therefore never trained: {these} not learn. Add them to the optimizer of a model: "
    'optimizers={{"embedder_optimizer": AdamW([{{"params": embedder.parameters()}}, '
    "*loss.parameter_groups(lr=1.5e-4)]), ...}}."
)
FROZEN = (
    "HardNegativeGenerationLoss is frozen and in evaluation mode while optimizers step, as PML's "
    'freeze_these=("metric_loss",) leaves it. It is then the wrapped loss alone, without synthetic negatives. To train '
    'with synthetic negatives but a fixed generator, take "metric_loss" out of freeze_these and call '
    "loss.requires_grad_(False)."
)


class StepWatch:
    """Get a call for every optimizer step in the process, from the first batch until the watch is finished."""

    def __init__(self) -> None:
        self._finished = False

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Handle a step of any optimizer."""
        raise NotImplementedError

    def watch(self, wanted: bool = True) -> None:
        """Start watching steps, or stop."""
        (_watches.add if wanted and not self._finished else _watches.discard)(self)
        _update_hook()

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and loaded pickles a fresh watch."""
        return dict(type(self)().__dict__)


class OptimizerWatch(StepWatch):
    """Warn once if other parameters are trained, batch after batch, but nothing exists that could train these.

    PML's trainers do not warn if a loss has no optimizer; its gradients then accumulate unused. An optimizer may step
    less often than others, start later, or be held back by a GradScaler. An existing optimizer is therefore enough,
    unless one of PML's trainers, or ours, is known never to step it. Parameters that change without a torch optimizer
    count as trained. The watch ends with its first finding, of either kind. If no step was seen, all objects of the
    process are searched once for optimizers and trainers.
    """

    PARAMETERS, THESE = "parameters", "its generator does"  # in the messages

    def __init__(self) -> None:
        super().__init__()
        self._trainable: list[nn.Parameter] = []
        self._watched: set[int] = set()
        self._others_stepped = False
        self._missed = 0
        self._before: Tensor | None = None

    def begin_batch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count a training batch and warn if due; call it before the batch's optimizers step."""
        if not self._finished:
            self._trainable = [p for p in parameters if p.requires_grad]
            self._watched = {id(p) for p in self._trainable}
            if not self._trainable:  # frozen: start over if that ends
                self._missed, self._others_stepped, self._before = 0, False, None
            self._missed += self._others_stepped
            self._others_stepped = False
            if self._missed and self._before is None:
                self._before = sample_values(self._trainable)
            elif self._missed >= PATIENCE:
                self._finished = True
                if message := self._warning():
                    warnings.warn(
                        message.format(parameters=self.PARAMETERS, these=self.THESE), UserWarning, stacklevel=5
                    )
        self.watch(bool(self._trainable))

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Note whether these parameters or others stepped. Look now: the next batch may begin by clearing gradients."""
        if holds(optimizer, self._watched):
            self._finished = True
        elif any(p.grad is not None for p in self._trainable):
            self._others_stepped = True

    def _warning(self) -> str | None:
        """Return the message to warn with, if any."""
        assert self._before is not None
        now = sample_values(self._trainable)
        if now.shape != self._before.shape or now.device != self._before.device or not torch.equal(now, self._before):
            return None
        found = live_objects(Optimizer, BaseTrainer)
        optimizers = [o for o in found if isinstance(o, Optimizer) and holds(o, self._watched)]
        for trainer in (t for t in found if isinstance(t, BaseTrainer)):
            modules = getattr(trainer, "loss_funcs", {}).values()  # missing if its constructor raised
            parameters = (p for loss in modules if isinstance(loss, nn.Module) for p in loss.parameters())
            if any(id(p) in self._watched for p in parameters) and (message := never_stepped_by(trainer, optimizers)):
                return message
        return None if optimizers else NO_OPTIMIZER


class WrappedLossWatch(OptimizerWatch):
    """The same for the parameters of the wrapped loss."""

    PARAMETERS, THESE = "wrapped loss's own parameters, such as proxies or class weights,", "they do"


def never_stepped_by(trainer: Any, optimizers: list[Optimizer]) -> str | None:
    """Return the message for a trainer that will step none of these optimizers; None if it may step one."""
    given = [o for name, o in trainer.optimizers.items() if name.removesuffix("_optimizer") not in trainer.freeze_these]
    if type(trainer).step_optimizers is DeepAdversarialMetricLearning.step_optimizers:
        of_losses = [o for name, o in trainer.optimizers.items() if name.endswith("_loss_optimizer")]
        return NEVER_STEPPED if all(any(o is idle for idle in of_losses) for o in optimizers) else None
    # A user's subclass or hook may step others at any time.
    is_known = type(trainer).__module__.startswith(("pytorch_metric_learning.", "pml_gca."))
    if is_known and trainer.end_of_iteration_hook is return_input:
        return None if any(o is mine for o in optimizers for mine in given) else NO_OPTIMIZER
    return None


class FrozenWatch(StepWatch):
    """Warn once if training goes on, batch after batch, with a loss that is frozen and in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self._stepped = False
        self._missed = 0

    def begin_batch(self, embeddings: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Count a batch in evaluation mode and warn if due."""
        if self._finished or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if not getattr(embeddings, "requires_grad", False) or any(p.requires_grad for p in parameters):
            return
        self._missed += self._stepped
        self._stepped = False
        if self._missed >= PATIENCE:
            self._finished = True
            warnings.warn(FROZEN, UserWarning, stacklevel=5)
        self.watch()

    def reset(self) -> None:
        """Start over: a batch in training mode shows that the loss is not frozen for good."""
        self._stepped, self._missed = False, 0
        self.watch(False)

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Note that some optimizer stepped."""
        self._stepped = True


def holds(optimizer: Optimizer, parameters: set[int]) -> bool:
    """Return whether the optimizer has one of the parameters, given by identity."""
    return any(id(p) in parameters for group in optimizer.param_groups for p in group["params"])


def live_objects(*kinds: type) -> list[Any]:
    """Return all objects of these classes. Slow: it searches every object of the process."""
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


@torch.no_grad()
def sample_values(parameters: list[nn.Parameter]) -> Tensor:
    """Return a few values of each parameter, to detect changes."""
    return torch.cat([p.flatten()[:SAMPLE_SIZE] for p in parameters])


_watches: WeakSet[StepWatch] = WeakSet()
_hook: Any = None


def _update_hook() -> None:
    """Register or remove the one hook of all watches; never inside the hook, as torch iterates over hooks then."""
    global _hook
    for watch in [watch for watch in _watches if watch._finished]:
        _watches.discard(watch)
    if _watches and _hook is None:
        _hook = register_optimizer_step_post_hook(_notify_watches)
    elif not _watches and _hook is not None:
        _hook.remove()
        _hook = None


def _notify_watches(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Pass a step of any optimizer to the watches."""
    for watch in list(_watches):
        watch.optimizer_stepped(optimizer)

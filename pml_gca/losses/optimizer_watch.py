"""Noticing that nobody trains the generator, or that a frozen loss generates nothing."""

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

PATIENCE = 2  # batches before an alarm
SAMPLE = 64  # values of each parameter that are compared

NO_OPTIMIZER = (
    "Optimizers step, but so far none that holds the parameters of HardNegativeGenerationLoss: its generator does not "
    'learn. If they are in no optimizer, give PML\'s trainer one more, optimizers={..., "metric_loss_optimizer": '
    "AdamW(loss.parameter_groups(lr=1.5e-4))}, or add loss.parameter_groups(...) to the optimizer of your own loop."
)
NEVER_STEPPED = (
    "DeepAdversarialMetricLearning steps no optimizer of a loss, whatever it is given, so that the generator of "
    "HardNegativeGenerationLoss does not learn. Let the optimizer of a model hold its parameters, too: "
    'optimizers={"embedder_optimizer": AdamW([{"params": embedder.parameters()}, *loss.parameter_groups(lr=1.5e-4)]), '
    "...}."
)
FROZEN = (
    "HardNegativeGenerationLoss is frozen and in evaluation mode while optimizers step, as PML's "
    'freeze_these=("metric_loss",) leaves it: it is the wrapped loss alone, without synthetic negatives. To train with '
    'those of a generator that no longer learns, take "metric_loss" out of freeze_these and call '
    "loss.requires_grad_(False)."
)


class StepWatch:
    """Sees every optimizer step, from the first batch that asks for it until it has found what it looks for."""

    def __init__(self) -> None:
        self._finished = False

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Some optimizer, anywhere, has stepped."""
        raise NotImplementedError

    def watch(self, wanted: bool = True) -> None:
        """See steps from now on, or no longer."""
        (_watches.add if wanted and not self._finished else _watches.discard)(self)
        _keep_hook_while_needed()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a loaded pickle, starts a watch of its own."""
        return dict(type(self)().__dict__)


class OptimizerWatch(StepWatch):
    """Warn once if batch after batch trains other parameters, and nothing that could ever step the given ones exists.

    PML's trainers say nothing when a loss has no optimizer; its gradients then pile up unused. An optimizer may step
    less often than the others, start later, or be held back by a GradScaler, so that its existence is enough, unless
    one of PML's trainers, or of ours, is known never to step it. Parameters that change are trained, too, even if by no
    optimizer of torch. The watch ends with its first finding, one way or the other; optimizers and trainers are
    searched for among all objects, once, when no optimizer was seen to step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._learned: list[nn.Parameter] = []
        self._watched: set[int] = set()
        self._others_stepped = False
        self._missed = 0
        self._before: Tensor | None = None

    def begin_batch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Call once per training batch, before its optimizers step."""
        if not self._finished:
            self._learned = [p for p in parameters if p.requires_grad]
            self._watched = {id(p) for p in self._learned}
            self._missed += self._others_stepped
            self._others_stepped = False
            if self._missed and self._before is None:
                self._before = sample(self._learned)
            elif self._missed >= PATIENCE:
                self._finished = True
                if message := self._finding():
                    warnings.warn(message, UserWarning, stacklevel=5)
        self.watch(bool(self._learned))

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Look now at the gradients: the next batch may begin with clearing them."""
        if holds(optimizer, self._watched):
            self._finished = True
        elif any(p.grad is not None for p in self._learned):
            self._others_stepped = True

    def _finding(self) -> str | None:
        """What to warn of, if anything."""
        assert self._before is not None
        now = sample(self._learned)
        if now.shape != self._before.shape or now.device != self._before.device or not torch.equal(now, self._before):
            return None
        found = living(Optimizer, BaseTrainer)
        optimizers = [o for o in found if isinstance(o, Optimizer) and holds(o, self._watched)]
        for trainer in (t for t in found if isinstance(t, BaseTrainer)):
            modules = getattr(trainer, "loss_funcs", {}).values()  # one that was refused when made has none
            parameters = (p for loss in modules if isinstance(loss, nn.Module) for p in loss.parameters())
            if any(id(p) in self._watched for p in parameters) and (message := never_stepped_by(trainer, optimizers)):
                return message
        return None if optimizers else NO_OPTIMIZER


def never_stepped_by(trainer: Any, optimizers: list[Optimizer]) -> str | None:
    """What to say of a trainer that will step none of these optimizers; None if it may."""
    given = [o for name, o in trainer.optimizers.items() if name.removesuffix("_optimizer") not in trainer.freeze_these]
    if type(trainer).step_optimizers is DeepAdversarialMetricLearning.step_optimizers:
        of_losses = [o for name, o in trainer.optimizers.items() if name.endswith("_loss_optimizer")]
        return NEVER_STEPPED if all(any(o is idle for idle in of_losses) for o in optimizers) else None
    # A class or a hook of the user's may step others, sooner or later.
    is_known = type(trainer).__module__.startswith(("pytorch_metric_learning.", "pml_gca."))
    if is_known and trainer.end_of_iteration_hook is return_input:
        return None if any(o is mine for o in optimizers for mine in given) else NO_OPTIMIZER
    return None


class FrozenWatch(StepWatch):
    """Warn once if batch after batch trains with a loss that is frozen and in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self._stepped = False
        self._missed = 0

    def begin_batch(self, embeddings: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Call once per batch in evaluation mode."""
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
        """Call once per batch in training mode, which shows that evaluation is not for good."""
        self._stepped, self._missed = False, 0
        self.watch(False)

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Whichever it is, something is trained."""
        self._stepped = True


def holds(optimizer: Optimizer, parameters: set[int]) -> bool:
    """Whether some of the parameters, given by identity, are the optimizer's."""
    return any(id(p) in parameters for group in optimizer.param_groups for p in group["params"])


def living(*kinds: type) -> list[Any]:
    """All objects of these classes. Slow: it looks at every object of the process."""
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


@torch.no_grad()
def sample(parameters: list[nn.Parameter]) -> Tensor:
    """A few values of each parameter, to see whether they change."""
    return torch.cat([p.flatten()[:SAMPLE] for p in parameters])


_watches: WeakSet[StepWatch] = WeakSet()
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


def _tell_watches(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for watch in list(_watches):
        watch.optimizer_stepped(optimizer)

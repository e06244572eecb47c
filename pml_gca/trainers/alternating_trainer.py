"""The published training schedule of GCA-HNG. Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .autocast_trainer import AutocastTrainer, generation_losses
from .second_half import FirstHalf, call_through

OPTIMIZER = "metric_loss_optimizer"


class AlternatingTrainer(AutocastTrainer):
    """Train embedder and generator by turns, as the method was published.

    Every iteration steps twice. First embedder and generator on J_m + J_syn + J_gce, and the auxiliary classifier on
    its own loss, which shares no parameter with the others. Then the graph of the same embeddings is propagated anew,
    by the generator as it now is, and the generator is stepped on J_gen. PML's other trainers step everything at once,
    on one propagation, and are faster.

    As with the torch 1.8.1 of the published code, gradients of the generator become 0 between the steps, not None:
    AdamW then moves each of its parameters at both, on by its momentum where an objective does not reach it. The
    auxiliary classifier, and whatever else ``metric_loss_optimizer`` holds, such as proxies, moves at the first alone.

    Losses beside a ``HardNegativeGenerationLoss``, in PML's ``MultipleLosses`` or another module, are called once an
    iteration, and so are miners. Of several that generate each is stepped twice. One whose generator has no objective
    of its own is stepped once.

    Loss levels are those of ``HardNegativeGenerationLoss``; give it ``level_momentum=None`` for the published ones, the
    means of the epoch before.

    Args:
        *args, **kwargs: as for PML's ``TrainWithClassifier``; its classifier is optional, and has nothing to do with
            the generator's. ``loss_funcs["metric_loss"]`` is a ``HardNegativeGenerationLoss``, or a module that holds
            some, such as PML's ``MultipleLosses`` and ``DistributedLossWrapper``, or ``DistributedDataParallel`` with
            ``find_unused_parameters=True``. ``optimizers["metric_loss_optimizer"]`` holds their ``parameter_groups``.
        autocast_dtype: ``torch.bfloat16``, or None for full precision.

    Raises:
        TypeError: the metric loss neither is nor holds a ``HardNegativeGenerationLoss``.
        ValueError: the optimizer of a generator that learns is missing; ``find_unused_parameters`` is; or as for
            `AutocastTrainer`.
    """

    def __init__(self, *args: Any, autocast_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, autocast_dtype=autocast_dtype, **kwargs)
        loss = self.loss_funcs["metric_loss"]
        self._halves = generation_losses(loss)
        if not self._halves:
            raise TypeError(
                "loss_funcs['metric_loss'] must be a HardNegativeGenerationLoss, whose two halves alternate, or hold "
                f"one, got {type(loss).__name__}; another loss is trained by PML's MetricLossOnly or "
                "TrainWithClassifier"
            )
        if OPTIMIZER not in self.optimizers and "metric_loss" not in self.freeze_these and self._stepped_twice():
            raise ValueError(
                f"optimizers must hold '{OPTIMIZER}', which steps the generator, e.g. "
                f"AdamW(loss.parameter_groups(lr=1.5e-4)); found {', '.join(self.optimizers) or 'none'}"
            )
        for parallel in (m for m in loss.modules() if isinstance(m, DistributedDataParallel)):
            if generation_losses(parallel) and not parallel.find_unused_parameters:
                raise ValueError(
                    "DistributedDataParallel around a loss whose halves alternate needs find_unused_parameters=True, "
                    "as each half leaves some parameters without gradient"
                )
        self._calls: list[FirstHalf] = []

    def forward_and_backward(self) -> None:
        """One iteration: both steps."""
        self._calls = []
        with ExitStack() as stack:
            for half in self._halves:
                stack.enter_context(half.phase("embedding"))
                stack.enter_context(FirstHalf.kept_of(half, self._calls))
            super().forward_and_backward()
        self.step_generator()

    def zero_grad(self) -> None:
        """As in PML; but gradients of generators become 0, those of their auxiliary classifiers excepted."""
        optimizer = self.optimizers.get(OPTIMIZER)
        kept: dict[nn.Parameter, Tensor] = {}
        for parameter in self._stepped_twice() if optimizer is not None else ():
            # A run that goes on from a checkpoint has no gradients at first, but momentum.
            if parameter.grad is not None or parameter in optimizer.state:
                kept[parameter] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        super().zero_grad()
        for parameter, gradient in kept.items():
            parameter.grad = gradient

    def _stepped_twice(self) -> list[nn.Parameter]:
        """Parameters of generators that learn, without auxiliary classifiers."""
        generators = [half.generator for half in self._halves if half.generator.learns]
        once = {p for g in generators for p in getattr(g, "auxiliary_classifier", nn.Module()).parameters()}
        return [p for g in generators for p in g.parameters() if p.requires_grad and p not in once]

    def step_generator(self) -> None:
        """The second step, on the embeddings of the first."""
        calls = [call for call in self._calls if call.factor is not None and call.loss.generator.learns]
        self._calls = []
        if not calls:
            return
        self.zero_grad()
        with ExitStack() as stack:
            for half in self._halves:
                stack.enter_context(half.phase("generation"))
            stack.enter_context(self.autocast())
            generation = call_through(self.loss_funcs["metric_loss"], calls)
        if generation.requires_grad:  # else the generators are frozen
            generation.backward()
            clip = (self.gradient_clippers or {}).get("metric_loss_grad_clipper")
            if clip is not None:  # the others' parameters have no gradients now, which torch's clippers do not take
                clip()
            self.optimizers[OPTIMIZER].step()
        for name in ("metric_loss", "total_loss"):  # what progress bar and records show
            self.losses[name] = self.losses[name].detach() + generation.detach()

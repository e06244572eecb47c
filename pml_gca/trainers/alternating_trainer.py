"""The published training schedule of GCA-HNG. Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .autocast_trainer import AutocastTrainer, generation_losses
from .recorded_calls import RecordedCall, recording, repeat_calls

OPTIMIZER = "metric_loss_optimizer"


class AlternatingTrainer(AutocastTrainer):
    """Train embedder and generator in alternating steps, as the method was published.

    Every iteration makes two steps. The first trains embedder and generator on J_m + J_syn + J_gce, and the auxiliary
    classifier on its own loss, which shares no parameter with the others. The second propagates the graph of the same
    embeddings again, with the updated generator, and trains the generator on J_gen. PML's other trainers train
    everything in one step, with one propagation, and are faster.

    Between the two steps, gradients of the generator are set to 0 instead of None, as by the torch 1.8.1 of the
    published code. AdamW therefore moves each of its parameters in both steps, by momentum if an objective does not
    reach it. The auxiliary classifier, and other parameters in `metric_loss_optimizer` such as proxies, move in the
    first step only.

    Losses beside a `HardNegativeGenerationLoss`, in PML's `MultipleLosses` or another module, are called once an
    iteration, and so are miners. If several losses have a generator, each generator makes both steps. A generator
    without an objective of its own makes only the first.

    Loss levels are those of `HardNegativeGenerationLoss`. Give it `level_momentum=None` for the published ones, the
    means of the previous epoch.

    Args:
        *args, **kwargs: as for PML's `TrainWithClassifier`; its classifier is optional and unrelated to the
            generator's. `loss_funcs["metric_loss"]` is a `HardNegativeGenerationLoss`, or a module that contains
            some: PML's `MultipleLosses` or `DistributedLossWrapper`, or `DistributedDataParallel` with
            `find_unused_parameters=True`. `optimizers["metric_loss_optimizer"]` holds their `parameter_groups`.
        autocast_dtype: `torch.bfloat16`, or None for full precision.

    Raises:
        TypeError: the metric loss neither is nor contains a `HardNegativeGenerationLoss`.
        ValueError: the optimizer of a generator with an objective, or `find_unused_parameters`, is missing; or as for
            `AutocastTrainer`.
    """

    def __init__(self, *args: Any, autocast_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, autocast_dtype=autocast_dtype, **kwargs)
        metric_loss = self.loss_funcs["metric_loss"]
        self._losses = generation_losses(metric_loss)
        if not self._losses:
            raise TypeError(
                "loss_funcs['metric_loss'] must be a HardNegativeGenerationLoss, or contain one, got "
                f"{type(metric_loss).__name__}; train another loss with PML's MetricLossOnly or TrainWithClassifier"
            )
        if OPTIMIZER not in self.optimizers and "metric_loss" not in self.freeze_these and self._stepped_twice():
            raise ValueError(
                f"optimizers must hold '{OPTIMIZER}', which steps the generator, e.g. "
                f"AdamW(loss.parameter_groups(lr=1.5e-4)); found {', '.join(self.optimizers) or 'none'}"
            )
        for parallel in (m for m in metric_loss.modules() if isinstance(m, DistributedDataParallel)):
            if generation_losses(parallel) and not parallel.find_unused_parameters:
                raise ValueError(
                    "DistributedDataParallel around a loss with a generator needs find_unused_parameters=True, "
                    "as each of the two steps leaves some parameters without gradient"
                )

    def forward_and_backward(self) -> None:
        """Run one iteration: both steps."""
        calls: list[RecordedCall] = []
        with ExitStack() as stack:
            for loss in self._losses:
                stack.enter_context(loss.phase("embedding"))
                stack.enter_context(recording(loss, calls))
            super().forward_and_backward()
        self.step_generator([call for call in calls if call.weight is not None and call.loss.generator.has_objective])

    def zero_grad(self) -> None:
        """Clear gradients as PML does, but set those of parameters trained by a generator's objective to 0."""
        optimizer = self.optimizers.get(OPTIMIZER)
        kept: dict[nn.Parameter, Tensor] = {}
        for parameter in self._stepped_twice() if optimizer is not None else ():
            # A run resumed from a checkpoint has momentum, but no gradients yet.
            if parameter.grad is not None or parameter in optimizer.state:
                kept[parameter] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        super().zero_grad()
        for parameter, gradient in kept.items():
            parameter.grad = gradient

    def _stepped_twice(self) -> list[nn.Parameter]:
        """Return the parameters that a generator's own objective trains."""
        return [p for loss in self._losses for p in loss.generator.objective_parameters() if p.requires_grad]

    def step_generator(self, calls: list[RecordedCall]) -> None:
        """Make the second step: repeat the calls of the first that trained a generator with an objective."""
        if not calls:
            return
        self.zero_grad()
        with ExitStack() as stack:
            for loss in self._losses:
                stack.enter_context(loss.phase("generation"))
            stack.enter_context(self.autocast())
            generation = repeat_calls(self.loss_funcs["metric_loss"], calls)
        if generation.requires_grad:  # else the generators are frozen
            generation.backward()
            clip = (self.gradient_clippers or {}).get("metric_loss_grad_clipper")
            if clip is not None:  # others would fail: their parameters have no gradients now
                clip()
            self.optimizers[OPTIMIZER].step()
        for name in ("metric_loss", "total_loss"):  # what progress bar and records show
            self.losses[name] = self.losses[name].detach() + generation.detach()

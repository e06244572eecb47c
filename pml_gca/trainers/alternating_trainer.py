"""The published training schedule of GCA-HNG. Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145"""

from typing import Any

import torch
from torch import Tensor

from .autocast_trainer import AutocastTrainer, generation_loss


class AlternatingTrainer(AutocastTrainer):
    """Train embedder and generator by turns, as the method was published.

    Every iteration steps twice. First embedder and generator on J_m + J_syn + J_gce, and the auxiliary classifier on
    its own loss, which shares no parameter with the others. Then the graph of the same embeddings is propagated anew,
    by the generator as it now is, and the generator is stepped on J_gen. PML's other trainers step everything at once,
    on one propagation, and are faster.

    Loss levels are those of ``HardNegativeGenerationLoss``; give it ``level_momentum=None`` for the published ones, the
    means of the epoch before.

    Args:
        *args, **kwargs: as for PML's ``TrainWithClassifier``; its classifier is optional, and has nothing to do with
            the generator's. ``loss_funcs["metric_loss"]`` is a ``HardNegativeGenerationLoss``,
            ``optimizers["metric_loss_optimizer"]`` holds its ``parameter_groups``.
        autocast_dtype: ``torch.bfloat16``, or None for full precision.

    Raises:
        TypeError: the metric loss is no ``HardNegativeGenerationLoss``.
        ValueError: its optimizer is missing; its generator does not learn; or as for :class:`AutocastTrainer`.
    """

    def __init__(self, *args: Any, autocast_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, autocast_dtype=autocast_dtype, **kwargs)
        loss, found = self.loss_funcs["metric_loss"], generation_loss(self.loss_funcs["metric_loss"])
        if found is None:
            raise TypeError(
                "loss_funcs['metric_loss'] must be a HardNegativeGenerationLoss, whose two halves alternate, got "
                f"{type(loss).__name__}; another loss is trained by PML's MetricLossOnly or TrainWithClassifier"
            )
        if not found.generator.learns:
            raise ValueError(
                f"the generator, a {type(found.generator).__name__}, has no objective of its own to alternate with; "
                "use PML's MetricLossOnly or TrainWithClassifier"
            )
        if "metric_loss_optimizer" not in self.optimizers:
            raise ValueError(
                "optimizers must hold 'metric_loss_optimizer', which steps the generator, e.g. "
                f"AdamW(loss.parameter_groups(lr=1.5e-4)); found {', '.join(self.optimizers) or 'none'}"
            )
        self._halves = found
        self._batch: tuple[Tensor, Tensor] | None = None

    def forward_and_backward(self) -> None:
        """One iteration: both steps."""
        with self._halves.phase("embedding"):
            super().forward_and_backward()
        self.step_generator()

    def maybe_get_metric_loss(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> Tensor | int:
        """As in PML; what the generator's step needs is kept."""
        self._batch = embeddings.detach(), labels
        loss: Tensor | int = super().maybe_get_metric_loss(embeddings, labels, indices_tuple)
        return loss

    def step_generator(self) -> None:
        """The second step, on the embeddings of the first."""
        assert self._batch is not None
        weight = self.loss_weights.get("metric_loss", 0)
        if weight <= 0 or "metric_loss" in self.freeze_these:
            return
        self.zero_grad()
        with self._halves.phase("generation"), self.autocast():
            generation = weight * self.loss_funcs["metric_loss"](*self._batch)
        self._batch = None
        generation.backward()
        clip = (self.gradient_clippers or {}).get("metric_loss_grad_clipper")
        if clip is not None:  # the others' parameters have no gradients now, which torch's clippers do not take
            clip()
        self.optimizers["metric_loss_optimizer"].step()
        for name in ("metric_loss", "total_loss"):  # what progress bar and records show
            self.losses[name] = self.losses[name].detach() + generation.detach()

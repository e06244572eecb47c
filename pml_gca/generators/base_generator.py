"""The interface of all generators of hard negatives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor, nn

from ..utils.batch_checks import check_embeddings, check_labels, check_not_swapped, largest_value
from ..utils.dtypes import compute_dtype
from ..utils.host import to_device
from ..utils.norms import length
from ..utils.records import UnrecordedValues
from ..utils.running_statistics import restored_on_error
from ..utils.validation import (
    check_choice,
    check_learning_rates,
    check_level,
    check_pml_arguments,
    check_positive_int,
)
from .batch import PHASES, Batch, HostValues


@dataclass(frozen=True)
class SyntheticNegatives:
    """S labelled synthetic negatives; each belongs to its anchor alone.

    Attributes:
        embeddings: (S, D), same dtype as the batch.
        labels: (S,) long, the class each imitates, never its anchor's.
        anchors: (S,) long, row of the batch each belongs to.
        objectives: named scalar terms that train the generator. They are added to the loss as they are, with gradient
            routing already done. The generator level G follows `generation_loss` (J_gen), if it is there. It is also
            the only term of the second step of an alternating schedule.
        num_skipped_anchors: anchors without a positive, for which nothing was generated; None if not counted.
    """

    embeddings: Tensor
    labels: Tensor
    anchors: Tensor
    objectives: Mapping[str, Tensor] = field(default_factory=dict)
    num_skipped_anchors: int | None = None

    def __len__(self) -> int:
        return len(self.anchors)


class BaseGenerator(ModuleWithRecords):
    """Make labelled synthetic negatives of embeddings and labels, for any loss.

    A subclass implements `generate`. It takes any label composition and order, steps no optimizer, and returns
    objective terms only if it has parameters.

    Args:
        num_classes: training classes N; labels lie in [0, N).
        embedding_size: channels D of an embedding.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: `num_classes` or `embedding_size` is no positive integer.
    """

    stat_names: tuple[str, ...] = ("num_negatives", "num_skipped_anchors")
    has_objective: bool = False
    """Whether it returns `generation_loss`, whose level decides how much its negatives count.

    The negatives of a generator without one count fully from the first batch, even if it has parameters to train.
    """

    def __init__(self, num_classes: int, embedding_size: int, *, collect_stats: bool | None = None) -> None:
        check_positive_int("num_classes", num_classes)
        check_positive_int("embedding_size", embedding_size)
        check_pml_arguments({"collect_stats": collect_stats})
        super().__init__(collect_stats=collect_stats)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.observed = UnrecordedValues()
        if self.collect_stats:
            self.start_collecting_stats()

    def start_collecting_stats(self) -> None:
        """Collect statistics from now on, also of generators inside this one.

        A loss that collects them calls it, and records them as its own.
        """
        for generator in (module for module in self.modules() if isinstance(module, BaseGenerator)):
            generator.collect_stats = True

    def observe(self, **values: Tensor | float) -> None:
        """Keep statistics of the present batch, scalars, for `HardNegativeGenerationLoss.logs`.

        They stay on their device. Only if statistics are collected for PML's records are they read now.
        """
        self.observed.update({name: x.detach() if isinstance(x, Tensor) else x for name, x in values.items()})
        if self.collect_stats:
            for name, value in values.items():
                setattr(self, name, value.item() if isinstance(value, Tensor) else value)

    def reset_stats(self) -> None:
        """Forget the statistics of the batch before; PML's interface."""
        super().reset_stats()
        self.observed.clear()
        for name in self.stat_names if self.collect_stats else ():
            setattr(self, name, 0)

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Generate negatives for the anchors of a batch.

        On a GPU the values of the batch are not checked yet: `batch.labels_on_host()` waits for the check, and so
        does the caller afterwards. If it raises, the caller restores the buffers.

        Args:
            batch: as from `batch`.
            metric_level: running mean of the metric loss, L, 0-dimensional; infinite before any was seen.
        """
        raise NotImplementedError

    @torch.compiler.disable
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        num_anchors: int | None = None,
        metric_level: Tensor | float = math.inf,
    ) -> SyntheticNegatives:
        """Generate negatives for the first `num_anchors` rows.

        Args:
            embeddings: (B, D), floating, finite.
            labels: (B,), integers in [0, num_classes).
            num_anchors: rows from here on are references: they take part as positives and negatives, generate
                nothing and get no gradient. All rows are anchors by default.
            metric_level: running mean of the metric loss, L; infinite before any was seen.

        Raises:
            TypeError: embeddings are not floating or labels not integer tensors, or are inside `torch.vmap`;
                `num_anchors` is no integer or `metric_level` no number.
            ValueError: a wrong shape, a value that is not finite, a label or `num_anchors` out of range, a level
                that is NaN.
        """
        check_level("metric_level", metric_level)
        metric_level = metric_level.reshape(()) if isinstance(metric_level, Tensor) else metric_level
        batch = self.batch(embeddings, labels, num_anchors)
        self.follow_device(embeddings.device)
        with restored_on_error(self.buffers()):
            negatives = self.generate(batch, metric_level)
            batch.finish()
        return negatives

    def batch(
        self,
        embeddings: Tensor,
        labels: Tensor,
        num_anchors: int | None = None,
        phase: str = "all",
        *,
        names: tuple[str, str] = ("embeddings", "labels"),
        references_checked: bool = False,
        num_memory: int = 0,
    ) -> Batch:
        """Check a batch, and start the one copy to the host that it needs.

        Shapes and dtypes are checked now. Values on a GPU are checked when `Batch.labels_on_host` first waits for them.

        Args:
            embeddings, labels, num_anchors: as for `forward`.
            phase: see `Batch`.
            names: of the first two arguments, for messages.
            references_checked: whether the values of references were checked before; only those of anchors are now.
            num_memory: see `Batch`.

        Raises:
            TypeError, ValueError: as `forward`; on a GPU not yet for values.
        """
        self.check_shapes(embeddings, labels, names)
        num_anchors = len(embeddings) if num_anchors is None else num_anchors
        check_positive_int("num_anchors", num_anchors, minimum=0)
        if num_anchors > len(embeddings):
            raise ValueError(f"num_anchors must lie in [0, {len(embeddings)}], the batch size, got {num_anchors}")
        check_choice("phase", phase, PHASES)
        labels = to_device(labels.long(), embeddings.device)
        host = HostValues(
            embeddings,
            labels,
            num_classes=self.num_classes,
            largest=self.largest_value(embeddings.dtype),
            names=names,
            num_checked=num_anchors if references_checked else None,
        )
        return Batch(embeddings, labels, num_anchors, host, phase, num_memory=num_memory)

    def check_shapes(
        self, embeddings: object, labels: object, names: tuple[str, str] = ("embeddings", "labels")
    ) -> None:
        """Raise unless embeddings and labels have the types, dtypes and shapes that `forward` takes."""
        check_not_swapped(embeddings, labels, names)
        check_embeddings(embeddings, self.embedding_size, names[0], num_classes=self.num_classes)
        assert isinstance(embeddings, Tensor)
        check_labels(labels, len(embeddings), names[1], of=names[0])

    def largest_value(self, dtype: torch.dtype) -> float:
        """Return the largest value that embeddings of `dtype` may have at present; larger ones are refused."""
        return largest_value(dtype)

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return optimizer groups of the parameters that may learn; one group without parameters if there are none."""
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr}]

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `generation_loss` trains: an alternating schedule steps them twice."""
        return list(self.parameters()) if self.has_objective else []

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient that the parameters hold now; 0 without one."""
        gradients = (p.grad for p in self.parameters() if p.grad is not None)
        norms = [length(gradient.to(compute_dtype(gradient)).flatten()) for gradient in gradients]
        return length(torch.stack(norms)).item() if norms else 0.0

    @torch.no_grad()
    def follow_device(self, device: torch.device) -> None:
        """Move to `device` if not there yet: PML's trainers move models, but not losses and their generators."""
        parameter = next(self.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.to(device)

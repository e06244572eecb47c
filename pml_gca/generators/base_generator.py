"""What a generator of hard negatives is to the loss that uses it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor

from ..utils.dtypes import compute_dtype
from ..utils.host import HostCopy
from ..utils.norms import length
from ..utils.validation import (
    FiniteCheck,
    check_embeddings,
    check_label_range,
    check_labels,
    check_learning_rates,
    check_level,
    check_pml_arguments,
    check_positive_int,
    largest_value,
)
from ..utils.wide_buffers import restored_on_error


@dataclass(frozen=True)
class SyntheticNegatives:
    """S labelled synthetic negatives; each belongs to its anchor alone.

    Attributes:
        embeddings: (S, D), same dtype as the batch.
        labels: (S,) long, the class each imitates, never its anchor's.
        anchors: (S,) long, row of the batch each belongs to.
        objectives: named scalar terms that train the generator. They are added to the loss as they are, with gradient
            routing already done; ``generation_loss`` (J_gen), where present, is the one the generator level G follows,
            and the only one of the second step of an alternating schedule.
        num_skipped_anchors: anchors for which nothing could be generated, having no positive; None if not counted.
    """

    embeddings: Tensor
    labels: Tensor
    anchors: Tensor
    objectives: Mapping[str, Tensor] = field(default_factory=dict)
    num_skipped_anchors: int | None = None

    def __len__(self) -> int:
        return len(self.anchors)


class BaseGenerator(ModuleWithRecords):
    """Embeddings and labels go in, labelled synthetic negatives come out, whatever loss they are for.

    A subclass implements `generate`. It may be called on any label composition and order, must not step
    optimizers, and returns objective terms only if it has parameters.

    Args:
        num_classes: training classes N; labels lie in [0, N).
        embedding_size: channels D of an embedding.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: ``num_classes`` or ``embedding_size`` is no positive integer.
    """

    stat_names: tuple[str, ...] = ("num_negatives", "num_skipped_anchors")
    phase = "all"  # which half of an alternating schedule asks, see HardNegativeGenerationLoss.phase

    def __init__(self, num_classes: int, embedding_size: int, collect_stats: bool | None = None) -> None:
        check_positive_int("num_classes", num_classes)
        check_positive_int("embedding_size", embedding_size)
        check_pml_arguments({"collect_stats": collect_stats})
        super().__init__(collect_stats=collect_stats)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        if self.collect_stats:
            self.start_collecting_stats()

    def start_collecting_stats(self) -> None:
        """Record statistics from now on, as the loss asks when it collects them itself."""
        self.collect_stats = True
        self.add_to_recordable_attributes(list_of_names=list(self.stat_names), is_stat=True)
        # No stat in PML's sense, which is reset when a batch begins: this one is known after backward.
        self.add_to_recordable_attributes(name="gradient_norm")

    def generate(
        self, embeddings: Tensor, labels: Tensor, num_anchors: int, metric_level: Tensor | float
    ) -> SyntheticNegatives:
        """As `forward`, on checked input; labels may be on the host, or out of range on another device.

        Where it raises, the caller gives the buffers back their values.
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
        """Generate negatives for the first ``num_anchors`` rows.

        Args:
            embeddings: (B, D), floating, finite.
            labels: (B,), integers in [0, num_classes).
            num_anchors: rows from here on are references: they take part as positives and negatives, generate
                nothing and get no gradient. All rows are anchors by default.
            metric_level: running mean of the metric loss, L; infinite before any was seen.

        Raises:
            TypeError: embeddings are not floating or labels not integer tensors, or are inside ``torch.vmap``;
                ``num_anchors`` is no integer or ``metric_level`` no number.
            ValueError: a wrong shape, a value that is not finite, a label or ``num_anchors`` out of range, a level
                that is NaN.
        """
        check = self.start_check(embeddings, labels)
        num_anchors = len(embeddings) if num_anchors is None else num_anchors
        check_positive_int("num_anchors", num_anchors, minimum=0)
        check_level("metric_level", metric_level)
        metric_level = metric_level.reshape(()) if isinstance(metric_level, Tensor) else metric_level
        if num_anchors > len(embeddings):
            raise ValueError(f"num_anchors must lie in [0, {len(embeddings)}], the batch size, got {num_anchors}")
        self.follow_device(embeddings.device)
        with restored_on_error(self.buffers()):  # what a GPU says late must have changed nothing
            negatives = self.generate(embeddings, labels, num_anchors, metric_level)
            check.finish()
        return negatives

    def largest_value(self, dtype: torch.dtype) -> float:
        """The largest value that embeddings of ``dtype`` may have at present; longer ones are refused."""
        return largest_value(dtype)

    def start_check(
        self, embeddings: object, labels: object, names: tuple[str, str] = ("embeddings", "labels")
    ) -> FiniteCheck:
        """Raise if a batch is not what `forward` says; ``names`` are those of the arguments in messages.

        Values that another device holds are not waited for: the check that is returned is to be finished later, and
        labels are checked where `labels_on_host` first needs them.
        """
        largest = self.largest_value(embeddings.dtype) if isinstance(embeddings, Tensor) else None
        check = check_embeddings(embeddings, self.embedding_size, names[0], largest)
        assert isinstance(embeddings, Tensor)
        check_labels(labels, len(embeddings), names[1], of=names[0])
        assert isinstance(labels, Tensor)
        if not labels.is_cuda:
            check_label_range(labels, self.num_classes, names[1])
        if not embeddings.is_cuda:
            check.finish()
        return check

    def check_batch(
        self, embeddings: object, labels: object, names: tuple[str, str] = ("embeddings", "labels")
    ) -> None:
        """As `start_check`, and wait for all values."""
        check = self.start_check(embeddings, labels, names)
        assert isinstance(labels, Tensor)
        check_label_range(labels, self.num_classes, names[1])
        check.finish()

    def labels_on_host(self, copy: HostCopy) -> Tensor:
        """Labels, as (N,) long, whose copy was started earlier.

        Raises:
            ValueError: one is out of range.
        """
        labels = copy.wait()
        check_label_range(labels, self.num_classes)
        return labels.long()

    def wants(self, objective: str) -> bool:
        """Whether an objective term counts in this `phase`; a term that does not need not be computed.

        ``generation_loss`` has a phase of its own, and all others, whatever their names, are of the other.
        """
        return self.phase == "all" or (objective == "generation_loss") == (self.phase == "generation")

    def parameter_groups(self, lr: float, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Optimizer groups of the learned parameters; empty for a generator that does not learn."""
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": lr}] if parameters else []

    @property
    def learns(self) -> bool:
        """Whether it has parameters. The negatives of a generator that has none count fully, from the start.

        One that learns is to return ``generation_loss`` among its objectives, as its level decides how much its
        negatives count. One that has parameters and no such objective overrides this with False: they are trained all
        the same, and its negatives count fully.
        """
        return next(self.parameters(), None) is not None

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient that the parameters hold now; 0 where there is none."""
        gradients = (p.grad for p in self.parameters() if p.grad is not None)
        norms = [length(gradient.to(compute_dtype(gradient)).flatten()) for gradient in gradients]
        return length(torch.stack(norms)).item() if norms else 0.0

    @torch.no_grad()
    def follow_device(self, device: torch.device) -> None:
        """Move to ``device`` if not there yet: PML's trainers move models, but not losses and what they hold."""
        parameter = next(self.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.to(device)

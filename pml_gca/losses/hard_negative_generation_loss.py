"""Any PML loss, learning from generated hard negatives. https://arxiv.org/abs/2411.13145"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..graph import join_references
from ..interpolation import next_positive
from ..utils.records import hide_modules_from_records
from ..utils.validation import FiniteCheck, check_number
from .families import SyntheticBatch, check_loss, check_references, synthetic_loss
from .level import Level
from .optimizer_watch import FrozenWatch, OptimizerWatch
from .total_reducer import TotalReducer

SUB_LOSSES = ("metric_loss", "synthetic_loss", "generator_loss")
PHASES = ("all", "embedding", "generation")


class HardNegativeGenerationLoss(BaseMetricLossFunction):
    r"""Wrap a PML loss, so that it also learns from the synthetic negatives of a generator.

    In training the loss is

    .. math:: J_m + (1 - e^{-\beta/G})\,J_{syn} + J_{gce} + J_{gen} + 10\,J_{aux}

    with J_m the wrapped loss as it was called, J_syn the wrapped loss with each anchor's synthetic negatives
    (:mod:`pml_gca.losses.families` says how), G a running mean of J_gen, and the last three the generator's own
    terms, which together are the sub-loss ``generator_loss``. J_m, J_syn and J_gce train the embeddings; J_gce and
    J_gen the generator; J_aux its auxiliary classifier. Of a generator that does not learn, J_syn has the weight 1, and
    the last three are absent.
    In evaluation it is the wrapped loss alone. Of PML's records, ``synthetic_loss`` includes its weight.

    References (``ref_emb``, ``ref_labels``) join the graph as nodes without gradient, and are positives and negatives
    of the batch's anchors. A reference that equals a sample of the batch, label and all, is that sample; of several
    that are equal, the first is the first such sample, and so on, and those beyond are nodes. The graph grows with the
    square of batch and references together: a memory of thousands is too many.
    An ``indices_tuple`` goes to the wrapped loss, and leaves generation as it is.

    Args:
        loss: a loss of ``pytorch_metric_learning.losses``, or one registered with ``synthetic_loss``.
        generator: e.g. :class:`pml_gca.GlobalCorrelationGenerator`.
        beta: β: how far the generator's loss must have fallen before synthetic negatives count; without effect where
            the generator does not learn.
        level_momentum: of the running means L and G, in [0, 1); ``None`` for the published schedule, the mean of the
            epoch before: then call :meth:`end_epoch` after every epoch.
        **kwargs: ``collect_stats``, ``embedding_regularizer`` and the like, as for any PML loss; but no ``distance``,
            which is the wrapped loss's.

    Move it to the GPU before you make its optimizer, as any module. A loss that was not moved follows the first batch.

    Raises:
        TypeError, ValueError: the loss cannot take synthetic negatives, with the reason; the generator is none; beta
            or level_momentum is out of range.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_gca import GlobalCorrelationGenerator
        >>> generator = GlobalCorrelationGenerator(num_classes=10, embedding_size=8)
        >>> loss = HardNegativeGenerationLoss(losses.MultiSimilarityLoss(), generator)
        >>> optimizer = torch.optim.AdamW(loss.parameter_groups(lr=1.5e-4))
        >>> embeddings = torch.randn(6, 8, requires_grad=True)
        >>> loss(embeddings, torch.tensor([0, 0, 4, 4, 7, 7])).backward()
    """

    def __init__(
        self,
        loss: nn.Module,
        generator: BaseGenerator,
        beta: float = 20.0,
        level_momentum: float | None = 0.99,
        **kwargs: Any,
    ) -> None:
        check_loss(loss)
        if not isinstance(generator, BaseGenerator):
            raise TypeError(f"generator must be a pml_gca generator, got {type(generator).__name__}")
        check_number("beta", beta)
        if level_momentum is not None:
            check_number("level_momentum", level_momentum)
            if level_momentum >= 1:
                raise ValueError(f"level_momentum must be below 1, got {level_momentum}")
        if "distance" in kwargs:
            raise ValueError("distance belongs to the wrapped loss: give it to that one")
        kwargs.setdefault("reducer", TotalReducer({}))
        super().__init__(**kwargs)
        self.loss = loss
        self.generator = generator
        self.beta = beta
        self.levels = nn.ModuleDict({"metric": Level(level_momentum), "generator": Level(level_momentum)})
        hide_modules_from_records(self.levels)
        self.optimizer_watch, self.frozen_watch = OptimizerWatch(), FrozenWatch()
        self._check: FiniteCheck | None = None
        self._phase = "all"
        self.add_to_recordable_attributes(list_of_names=["beta", "metric_level", "generator_level"])
        self.add_to_recordable_attributes(list_of_names=[*SUB_LOSSES, "synthetic_weight"], is_stat=True)
        if self.collect_stats:
            generator.start_collecting_stats()

    def _sub_loss_names(self) -> list[str]:
        return list(SUB_LOSSES)

    @property
    def metric_level(self) -> Tensor:
        """L, running mean of the metric loss; a 0-dimensional tensor, infinite before anything was observed."""
        return self._level("metric").value

    @property
    def generator_level(self) -> Tensor:
        """G, running mean of the generator's loss; a 0-dimensional tensor, infinite before anything was observed."""
        return self._level("generator").value

    def end_epoch(self) -> None:
        """With ``level_momentum=None``: the epoch's means become the levels of the next."""
        for level in ("metric", "generator"):
            self._level(level).end_epoch()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within this context the loss is one half of itself, as the published alternating schedule needs it.

        ``"embedding"`` leaves out J_gen, the generator's ``generation_loss``; ``"generation"`` is J_gen alone, to be
        called with the same batch, detached, once the first half has been stepped.
        :class:`pml_gca.trainers.AlternatingTrainer` does all that.

        Raises:
            ValueError: ``name`` is neither of them, nor ``"all"``.
        """
        if name not in PHASES:
            raise ValueError(f"name must be one of {', '.join(PHASES)}, got {name!r}")
        before = self._phase, self.generator.phase
        self._phase = self.generator.phase = name
        try:
            yield
        finally:
            self._phase, self.generator.phase = before

    def parameter_groups(
        self, lr: float, classifier_lr: float = 1e-3, loss_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for the optimizer that PML's trainers call ``metric_loss_optimizer``.

        Args:
            lr: of the generator.
            classifier_lr: of its auxiliary classifier.
            loss_lr: of the wrapped loss's own parameters, such as proxies; ``lr`` if None.

        Returns:
            No groups where neither the generator nor the wrapped loss has parameters: it then needs no optimizer.
        """
        groups = self.generator.parameter_groups(lr, classifier_lr)
        own = list(self.loss.parameters())
        return [*groups, {"params": own, "lr": lr if loss_lr is None else loss_lr}] if own else groups

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, D), floating, finite.
            labels: (B,), integers in [0, num_classes).
            indices_tuple: a miner's pairs or triplets, for the wrapped loss.
            ref_emb: (R, D), further embeddings, such as those of other processes or a memory.
            ref_labels: (R,), their labels.

        Raises:
            TypeError, ValueError: in training, an argument is not as above; nothing has changed then.
        """
        if not self.training:
            self.frozen_watch.begin_batch(embeddings, self.parameters())
            self.reset_stats()
            return self._wrapped_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        check = self.generator.start_check(embeddings, labels)
        if ref_emb is not None:
            if ref_emb is not embeddings:
                check_references(self.loss)
            self.generator.check_batch(ref_emb, ref_labels, names=("ref_emb", "ref_labels"))
        self.frozen_watch.reset()
        self.optimizer_watch.begin_batch(self.generator.parameters())
        if self.metric_level.device != embeddings.device:
            self.to(embeddings.device)  # PML's trainers do not move losses
        self._check = check  # to be finished once the device is busy
        first_half = {n: getattr(self, n) for n in (*SUB_LOSSES, "synthetic_weight")} if self._adds_to_records else {}
        try:
            total: Tensor = super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        finally:
            self._check = None
        if first_half:
            first_half["generator_loss"] += self.generator_loss
            for name, value in first_half.items():
                setattr(self, name, value)
        return total

    @property
    def _adds_to_records(self) -> bool:
        return self.collect_stats and self._phase == "generation"

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> dict[str, dict[str, Any]]:
        """PML's interface: the sub-losses by name, each already a scalar."""
        references = () if ref_emb is embeddings and ref_labels is labels else (ref_emb, ref_labels.long())
        labels = labels.long()
        nodes, node_labels = embeddings, labels
        if references:
            nodes, node_labels, _ = join_references(embeddings, labels, *references)
        negatives = self.generator.generate(nodes, node_labels, len(embeddings), self.metric_level)
        if self._check is not None:
            self._check.finish()
        metric = synthetic = torch.zeros_like(self.generator_level)
        if self._phase != "generation":
            if len(negatives):
                synthetic = synthetic_loss(self.loss, SyntheticBatch(embeddings, labels, nodes, node_labels, negatives))
            # After the synthetic batch, so that the wrapped loss's own records are those of the real one.
            metric = self._metric_loss(embeddings, labels, indices_tuple, references, node_labels, len(negatives) > 0)
        weight = self.synthetic_weight_at(self.generator_level)
        objectives = {name: term for name, term in negatives.objectives.items() if self.generator.wants(name)}
        generator = sum(objectives.values(), start=torch.zeros_like(self.generator_level))
        values = (metric, weight * synthetic, generator)
        if self.collect_stats:
            self.metric_loss, self.synthetic_loss, self.generator_loss = (float(v.detach()) for v in values)
            self.synthetic_weight = float(weight)
        if len(negatives) and "generation_loss" in objectives:
            self._level("generator").observe(objectives["generation_loss"])
        return {
            name: {"losses": value, "indices": None, "reduction_type": "already_reduced"}
            for name, value in zip(SUB_LOSSES, values, strict=True)
        }

    def _metric_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        references: tuple[Tensor, ...],
        node_labels: Tensor,
        has_negatives: bool,
    ) -> Tensor:
        """The wrapped loss of the real batch, which the metric level follows; 0 with a graph where it has no value."""
        is_defined = len(embeddings) > 0  # of an empty batch some PML losses fail
        if is_defined:
            metric = self._wrapped_loss(embeddings, labels, indices_tuple, *references)
        if not has_negatives:
            # Distributed training waits for a gradient of every parameter.
            zero = sum(((p * 0).sum() for p in self.loss.parameters()), start=(embeddings * 0).sum())
            if is_defined:
                # Of a batch without positives most PML losses make 0, some NaN; neither tells how far training is.
                _, has_positive = next_positive(node_labels, len(labels))
                is_defined = bool(has_positive.any() | (metric.isfinite() & (metric != 0)))
            metric = metric + zero if is_defined else zero
        if is_defined:
            self._level("metric").observe(metric)
        return metric

    def synthetic_weight_at(self, generator_level: Tensor) -> Tensor:
        """1 − e^{−β/G}: 0 for an infinite level, 1 for a level of 0 or below, or if the generator does not learn."""
        if not self.generator.learns:
            return torch.ones_like(generator_level, dtype=torch.float64)
        level = generator_level.double().clamp_min(torch.finfo(torch.float64).tiny)
        return -torch.expm1(-self.beta / level)

    def _level(self, name: str) -> Level:
        level = self.levels[name]
        assert isinstance(level, Level)
        return level

    def _wrapped_loss(self, embeddings: Tensor, *args: Any) -> Tensor:
        while args and args[-1] is None:  # some losses take no references at all
            args = args[:-1]
        value: Tensor = self.loss(embeddings, *args)
        return value

"""Any PML loss, learning from generated hard negatives. https://arxiv.org/abs/2411.13145"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..generators.batch import PHASES, Batch
from ..utils.dtypes import compute_dtype
from ..utils.recomputation import check_no_recomputation
from ..utils.validation import check_learning_rates, check_number
from ..utils.wide_buffers import restored_on_error
from .custom_losses import check_uses_negatives
from .families import SyntheticBatch, synthetic_loss
from .level import FollowsLevels, LossLevels
from .optimizer_watch import FrozenWatch, OptimizerWatch
from .references import join_references
from .supported import LABELS_REQUIRED, check_references, check_supported_loss
from .wrapping_loss import WrappingLoss, already_reduced, as_scalar, without_regularizers

SUB_LOSSES = ("metric_loss", "synthetic_loss", "generator_loss")
STATS = (*SUB_LOSSES, "synthetic_weight")


class HardNegativeGenerationLoss(FollowsLevels, WrappingLoss):
    r"""Wrap a PML loss, so that it also learns from the synthetic negatives of a generator.

    In training the loss is

    .. math:: J_m + (1 - e^{-\beta/G})\,J_{syn} + J_{gce} + J_{gen} + 10\,J_{aux}

    with J_m the wrapped loss as it was called, J_syn the wrapped loss with each anchor's synthetic negatives, but
    without regularizers (`pml_gca.losses.families` says how), G a running mean of J_gen, and the last three the
    generator's own terms, which together are the sub-loss ``generator_loss``. J_m, J_syn and J_gce train the
    embeddings; J_gce and J_gen the generator; J_aux its auxiliary classifier. Of a generator that does not learn, J_syn
    has the weight 1, and the last three are absent. Of PML's records, ``synthetic_loss`` includes its weight.

    In evaluation, and under ``torch.no_grad()``, it is the wrapped loss alone, of any labels, and nothing changes.

    References (``ref_emb``, ``ref_labels``) join the graph as nodes without gradient, and are positives and negatives
    of the batch's anchors; without ``ref_labels`` they are for the wrapped loss alone. A reference that equals a sample
    of the batch, label and all, is that sample; of several that are equal, the first is the first such sample, and so
    on, and those beyond are nodes. The graph grows with the square of batch and references together.
    An ``indices_tuple`` goes to the wrapped loss, and leaves generation as it is.

    What this loss has no name for is the wrapped loss's, to read, set and call: ``loss.distance``, ``loss.margin``,
    ``loss.proxies``, ``loss.get_logits(...)``; and ``loss.beta``, where the wrapped loss has one: β is always
    ``loss.synthetic_beta``.

    Args:
        loss: a loss of ``pytorch_metric_learning.losses``, or one registered with ``synthetic_loss``.
        generator: e.g. `GlobalCorrelationGenerator`.
        beta: β: how far the generator's loss must have fallen before synthetic negatives count; without effect where
            the generator does not learn.
        level_momentum: of the running means L and G, in [0, 1); ``None`` for the published schedule, the mean of the
            epoch before: then call `end_epoch` after every epoch.
        **kwargs: ``embedding_regularizer`` and the like, as for any PML loss, but no ``distance``; ``collect_stats`` is
            the wrapped loss's by default.

    Move it to the GPU before you make its optimizer; else it follows the first batch.

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
        *,
        beta: float = 20.0,
        level_momentum: float | None = 0.99,
        **kwargs: Any,
    ) -> None:
        check_supported_loss(loss)
        if not isinstance(generator, BaseGenerator):
            raise TypeError(f"generator must be a pml_gca generator, got {type(generator).__name__}")
        check_number("beta", beta)
        if "distance" in kwargs:
            raise ValueError("distance belongs to the wrapped loss: set it there, as in ContrastiveLoss(distance=...)")
        kwargs.setdefault("collect_stats", getattr(loss, "collect_stats", None))
        super().__init__(**kwargs)
        self.generator = generator
        self.synthetic_beta = beta
        self.levels = LossLevels(level_momentum)
        self.optimizer_watch, self.frozen_watch = OptimizerWatch(), FrozenWatch()
        self._known: type | None = None  # the type of loss that is known to depend on negatives
        self._phase = "all"
        name_of_beta = "synthetic_beta" if hasattr(loss, "beta") else "beta"
        self.add_to_recordable_attributes(list_of_names=[name_of_beta, "metric_level", "generator_level"])
        self.add_to_recordable_attributes(list_of_names=list(STATS), is_stat=True)
        self.loss = loss
        self.pass_on()
        if self.collect_stats:
            generator.start_collecting_stats()

    def _sub_loss_names(self) -> list[str]:
        return list(SUB_LOSSES)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within this context the loss is one half of itself, as the published alternating schedule needs it.

        ``"embedding"`` leaves out J_gen, the generator's ``generation_loss``; ``"generation"`` is J_gen alone, to be
        called with the same batch, detached, once the first half has been stepped.
        `AlternatingTrainer` does all that.

        Raises:
            ValueError: ``name`` is neither of them, nor ``"all"``.
        """
        if name not in PHASES:
            raise ValueError(f"name must be one of {', '.join(PHASES)}, got {name!r}")
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def parameter_groups(
        self, lr: float, *, classifier_lr: float = 1e-3, loss_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for the optimizer that PML's trainers call ``metric_loss_optimizer``.

        Args:
            lr: of the generator.
            classifier_lr: of its auxiliary classifier.
            loss_lr: of the wrapped loss's own parameters, such as proxies; ``lr`` if None.

        Returns:
            No groups where neither the generator nor the wrapped loss has parameters: it then needs no optimizer.
        """
        loss_lr = lr if loss_lr is None else loss_lr
        check_learning_rates(lr=lr, classifier_lr=classifier_lr, loss_lr=loss_lr)
        groups, own = self.generator.parameter_groups(lr, classifier_lr=classifier_lr), list(self.loss.parameters())
        return [*groups, {"params": own, "lr": loss_lr}] if own else groups

    @torch.compiler.disable
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
            ref_emb, ref_labels: (R, D) and (R,), further embeddings, such as those of other processes or a memory.

        Raises:
            TypeError, ValueError: in training, an argument is not as above, or a loss of your own makes nothing of
                synthetic negatives; nothing has changed then.
            RuntimeError: in training, it is called inside ``torch.utils.checkpoint``.
        """
        if self.training:
            check_no_recomputation(type(self).__name__)
        if not (self.training and torch.is_grad_enabled()):
            self.frozen_watch.begin_batch(embeddings, self.parameters())
            return self.evaluate(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if labels is None:
            raise ValueError(LABELS_REQUIRED)
        check_supported_loss(self.loss)  # its reducer, or itself, may be another by now
        self.generator.check_shapes(embeddings, labels)
        references: tuple[Any, ...] = ()
        if ref_emb is not None and not (ref_emb is embeddings and ref_labels is labels):
            check_references(self.loss, self.generator, embeddings, ref_emb, ref_labels)
            references = (ref_emb, ref_labels if ref_labels is None else ref_labels.long())
        labels = c_f.to_device(labels, embeddings).long()
        nodes, node_labels = embeddings, labels
        if references and ref_labels is not None:
            nodes, node_labels, _ = join_references(embeddings, labels, *references)
        batch = self.generator.batch(nodes, node_labels, len(embeddings), self._phase)
        self.frozen_watch.reset()
        self.optimizer_watch.begin_batch(self.generator.parameters())
        if self.levels["metric"].total.device != embeddings.device:
            self.to(embeddings.device)  # PML's trainers do not move losses
        adds = self.collect_stats and batch.phase == "generation"
        first_half = {name: getattr(self, name, 0) for name in STATS if adds}
        self.reset_stats()
        with restored_on_error(self.buffers()):
            found = self.sub_losses(batch, embeddings, labels, indices_tuple, *references)
            total: Tensor = self.add_up(found, embeddings, labels, regularize=batch.phase != "generation")
        if first_half:
            first_half["generator_loss"] += self.generator_loss
            for name, value in first_half.items():
                setattr(self, name, value)
        return total

    def sub_losses(self, batch: Batch, embeddings: Tensor, labels: Tensor, *args: Any) -> dict[str, dict[str, Any]]:
        """Return the sub-losses, all scalars, as PML's reducers take them.

        Args:
            batch: the nodes: embeddings, and references if any.
            embeddings, labels: (B, D) and (B,), of the anchors.
            *args: what else the wrapped loss is called with: a miner's indices, and references.
        """
        metric_level, generator_level = self.metric_level, self.generator_level
        negatives = self.generator.generate(batch, metric_level)
        batch.finish()
        metric = synthetic = torch.zeros_like(generator_level)
        if batch.phase != "generation":
            if len(negatives):
                of_pairs = SyntheticBatch(embeddings, labels, batch.embeddings, batch.labels, negatives)
                synthetic = self._synthetic_loss(of_pairs)
            # Last, as PML's records are of the latest call: they are to be of the real batch.
            metric, is_telling = self.value_with_graph((embeddings, labels, *args), batch.labels, len(negatives) > 0)
            if is_telling:
                self.levels["metric"].observe(metric)
        weight = self.synthetic_weight_at(generator_level.to(compute_dtype(embeddings)))
        objectives = {name: term for name, term in negatives.objectives.items() if batch.wants(name)}
        generator = sum(objectives.values(), start=torch.zeros_like(generator_level))
        values = (metric, weight * synthetic, generator)
        if self.collect_stats:
            self.metric_loss, self.synthetic_loss, self.generator_loss = (float(v.detach()) for v in values)
            self.synthetic_weight = float(weight)
        if len(negatives) and batch.phase != "embedding":
            self.observe_generator(objectives)
        return {name: already_reduced(value) for name, value in zip(SUB_LOSSES, values, strict=True)}

    def _synthetic_loss(self, batch: SyntheticBatch) -> Tensor:
        """J_syn; regularizers count once, in J_m."""
        with without_regularizers(self.loss):
            if self._known is not type(self.loss):
                check_uses_negatives(self.loss, batch)
                self._known = type(self.loss)
            return as_scalar(synthetic_loss(self.loss, batch), self.loss)

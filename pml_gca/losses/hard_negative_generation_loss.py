"""Any PML loss, learning from generated hard negatives. https://arxiv.org/abs/2411.13145"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..distributed.arguments import CallArguments
from ..distributed.processes import Gathering
from ..generators.base_generator import BaseGenerator
from ..generators.batch import Batch
from ..generators.checks import check_generator
from ..utils.dtypes import compute_dtype, outside_autocast
from ..utils.running_statistics import check_not_recomputed, restored_on_error
from ..utils.validation import check_number
from .anchor_watch import AnchorWatch
from .custom_losses import check_uses_negatives
from .families import SyntheticBatch, synthetic_loss
from .global_batch import WrapperWatch, check_shards, whole_batch
from .levels import LossLevels, synthetic_weight
from .loss_wrapper import as_scalar, metric_loss_of, without_regularizers
from .memory import build_memory, labels_seen, with_memory
from .optimizer_watch import FrozenWatch, OptimizerWatch, WrappedLossWatch
from .references import make_batch
from .schedule import ScheduledLoss
from .supported import check_supported_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SUB_LOSSES = ("metric_loss", "synthetic_loss", "generator_loss")


class HardNegativeGenerationLoss(ScheduledLoss):
    """Wrap a PML loss: it then also learns from the synthetic negatives of a generator.

    In training the loss is

        J_m + (1 − e^{−β/G}) J_syn + J_gce + J_gen + 10 J_aux

    J_m is the wrapped loss as it was called. J_syn is the wrapped loss with each anchor's synthetic negatives, without
    regularizers (see `pml_gca.losses.families`). G is a running mean of J_gen. The last three are the generator's own
    terms; their sum is the sub-loss `generator_loss`. J_m, J_syn and J_gce train the embeddings, J_gce and J_gen the
    generator, J_aux its auxiliary classifier. If the generator has no objective J_gen, J_syn has the weight 1. The
    recorded `synthetic_loss` includes its weight.

    In evaluation, and under `torch.no_grad()`, it is the wrapped loss alone, and nothing changes. Labels may be any, if
    the wrapped loss has neither proxies nor class weights, which exist for training classes alone.
    Move it to the GPU before creating its optimizer; otherwise it moves with the first batch.

    References (`ref_emb`, `ref_labels`) join the graph as nodes without gradient, and are positives and negatives of
    the batch's anchors. Without `ref_labels` only the wrapped loss gets them. A reference equal to a sample of the
    batch, with the same label, is that sample; see `join_references`. The graph grows with the square of batch and
    references together. An `indices_tuple` goes to the wrapped loss and does not affect generation.

    With `gather_across_devices=True` each process calls the loss with its own rows, any number of them, and references
    likewise, in training and in evaluation. All processes compute the value of the global batch, the rows in the order
    of ranks, with the same random draws. The gradient of own rows is W times that of the value, for W processes:
    `DistributedDataParallel` or FSDP around the network divides by W. Gradients of the loss's parameters are those of
    one process, equal in all. In the first call, and after a state was loaded or a call failed, all take over the
    parameters of the first process. An `indices_tuple` is that of the global batch. With one process, or without
    `torch.distributed`, nothing is different.

    With `shard_edges=True` as well, each process computes 1/W of the edges of the generator's graph, and the sums over
    edges are exchanged, in the backward pass as well. Values and gradients are the same, and equal in all processes.
    All parameters of the loss get whole gradients, as without. Each process still holds all nodes and all synthetic
    negatives.

    With a `memory_size` M the last M embeddings of past batches, without gradient, join the graph as references, from
    iteration `memory_start` on. They have edges to the batch and none among each other: M may be thousands. J_m sees
    the memory too, if the wrapped loss compares pairs or triplets by `ref_emb`. J_m of other losses (N-pairs, NCA,
    triplets with `swap`, those with proxies, `MultipleLosses`, your own) sees the batch alone. Batches enter in
    training only, after their loss was computed, and are in the `state_dict`. A sample whose older embedding is in the
    memory is an ordinary positive. Of a batch of more than M rows the last M enter. With `gather_across_devices=True`
    the global batch enters, in all processes. A call with `ref_emb` is refused.

    Public attributes that this loss does not have are the wrapped loss's: `loss.distance`, `loss.margin`,
    `loss.proxies`, `loss.get_logits(...)`, and `loss.beta` if it has one. β is always `loss.synthetic_beta`.

    Args:
        loss: a loss of `pytorch_metric_learning.losses`, or one registered with `synthetic_loss`.
        generator: for example a `GlobalCorrelationGenerator`.
        beta: β: how far the generator's loss must have fallen before synthetic negatives count. Unused if the
            generator has no objective.
        level_momentum: momentum of the running means L and G, in [0, 1). `None` for the published schedule, the mean
            of the previous epoch: then call `end_epoch` after every epoch.
        gather_across_devices: with `torch.distributed`, compute the loss of the rows of all processes; see below.
        shard_edges: the processes share the work of the generator's graph. It pays where that work is large beside what
            is exchanged: see `generator.cost(..., num_processes=W)`.
        process_group: of `torch.distributed`, whose processes gather; None for all.
        memory_size: M, how many past embeddings are remembered; 0 for no memory.
        memory_start: how many batches enter the memory before it is used. Past embeddings are of little use while they
            still change quickly.
        **kwargs: `embedding_regularizer` and others, as for any PML loss, except `distance`. `collect_stats` defaults
            to the wrapped loss's.

    Raises:
        TypeError, ValueError: the loss cannot take synthetic negatives, for the reason given; `generator` is not a
            generator; `beta` or `level_momentum` is out of range; `process_group` is no group, or it or `shard_edges`
            is given without `gather_across_devices`; `shard_edges` is given with a generator without a graph.

    Examples:
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
        gather_across_devices: bool = False,
        shard_edges: bool = False,
        process_group: "ProcessGroup | None" = None,
        memory_size: int = 0,
        memory_start: int = 0,
        **kwargs: Any,
    ) -> None:
        check_supported_loss(loss)
        check_generator(generator)
        check_number("beta", beta)
        if "distance" in kwargs:
            raise ValueError("distance belongs to the wrapped loss: set it there, as in ContrastiveLoss(distance=...)")
        gathering = Gathering(gather_across_devices, process_group)
        check_shards(shard_edges, gathering, generator)
        memory = build_memory(memory_size, memory_start, generator)
        kwargs.setdefault("collect_stats", getattr(loss, "collect_stats", None))
        super().__init__(**kwargs)
        self.generator, self.synthetic_beta, self.levels = generator, beta, LossLevels(level_momentum)
        self.gathering, self.shard_edges, self.memory = gathering, bool(shard_edges), memory
        gathering.after_loading(self, generator, loss)
        self.optimizer_watch, self.frozen_watch, self.wrapper_watch = OptimizerWatch(), FrozenWatch(), WrapperWatch()
        self.anchor_watch, self.wrapped_watch = AnchorWatch(), WrappedLossWatch()
        self._checked_type: type | None = None  # the type of loss that is known to use the negatives
        name_of_beta = "synthetic_beta" if hasattr(loss, "beta") else "beta"
        self.add_to_recordable_attributes(list_of_names=[name_of_beta, "metric_level", "generator_level"])
        self.add_to_recordable_attributes(list_of_names=[*SUB_LOSSES, "synthetic_weight"], is_stat=True)
        self.record_generator()
        self.loss = loss
        self.delegate_attributes()

    def _sub_loss_names(self) -> list[str]:
        return list(SUB_LOSSES)

    @torch.compiler.disable
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch, a scalar.

        Args:
            embeddings: (B, D), floating, finite.
            labels: (B,), integers in [0, num_classes).
            indices_tuple: pairs or triplets of a miner, for the wrapped loss.
            ref_emb, ref_labels: (R, D) and (R,), further embeddings, such as those of other processes or a memory.

        Raises:
            TypeError, ValueError: in training, an argument is not as above, or a loss of your own ignores synthetic
                negatives; if batches are gathered, in any process, and then in all. Nothing has changed then.
            ValueError: the loss gathers batches, and is inside PML's `DistributedLossWrapper`.
            RuntimeError: in training, the loss is called inside `torch.utils.checkpoint`.
        """
        if self.training:
            check_not_recomputed(type(self).__name__)
        phase = self._phase if self.training and torch.is_grad_enabled() else None
        given = CallArguments(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        given = given.as_wide_as(list(self.loss.parameters()))
        self.wrapper_watch.begin_batch(self, self.gathering.enabled, phase, given)
        loss, generator, levels = self.loss, self.generator, self.levels
        with whole_batch(self, generator, self.gathering, given, phase) as whole:
            embeddings, labels, indices_tuple, ref_emb, ref_labels = whole
            if phase is None:
                self.frozen_watch.begin_batch(embeddings, self.parameters())
                return self.evaluate(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            assert labels is not None
            batch, (labels, *refs) = make_batch(
                generator, embeddings, labels, ref_emb, ref_labels, phase=phase, memory=self.memory
            )
            if self.shard_edges:
                batch = replace(batch, processes=self.gathering.processes())
            self.frozen_watch.reset()
            self.optimizer_watch.begin_batch(generator.parameters())
            self.wrapped_watch.begin_batch(loss.parameters())
            if levels.metric.total.device != embeddings.device:
                self.to(embeddings.device)  # PML's trainers do not move losses
            if phase != "generation":  # else records add to those of the phase before
                self.reset_stats()
            with restored_on_error(self.buffers()):
                args = (embeddings, labels, indices_tuple, *refs)
                values = self._sub_losses(loss, generator, levels, batch, args)
                total = self.sum_sub_losses(values, embeddings, labels, regularize=phase != "generation")
            if self.memory is not None:
                self.memory.observe(batch, generator.has_objective)
            return total

    def _sub_losses(
        self, loss: nn.Module, generator: BaseGenerator, levels: LossLevels, batch: Batch, args: tuple[Any, ...]
    ) -> dict[str, Tensor]:
        """Compute the sub-losses of a batch of nodes, all scalars; `args` are the wrapped loss's."""
        embeddings, labels = args[:2]
        metric_level, generator_level = levels.metric.value, levels.generator.value
        weight = synthetic_weight(generator_level.to(compute_dtype(embeddings)), self.synthetic_beta)
        if not generator.has_objective:
            weight = torch.ones_like(weight)
        negatives = generator.generate(batch, metric_level)
        batch.finish()  # raises for bad values, which a GPU reports late
        metric = synthetic = torch.zeros_like(weight)
        if batch.phase != "generation":
            self.anchor_watch.observe(batch, negatives)
            if len(negatives):
                pairs = SyntheticBatch(embeddings, labels, batch.embeddings, batch.labels, negatives)
                synthetic = self._synthetic_loss(loss, pairs)
            # Computed last: PML's records are those of the last call, and must be those of the real batch.
            args = with_memory(loss, batch, args)
            seen, has_positive = labels_seen(batch, args)
            metric, is_telling = metric_loss_of(loss, args, seen, has_positive and len(negatives) > 0)
            if is_telling:
                levels.metric.observe(metric)
        objectives = {name: term for name, term in negatives.objectives.items() if batch.wants(name)}
        objective = sum(objectives.values(), start=torch.zeros_like(weight))
        if len(negatives):
            levels.observe_generator(generator, negatives.objectives, batch.phase)
        values = dict(zip(SUB_LOSSES, (metric, weight * synthetic, objective), strict=True))
        self.keep_values({**values, "synthetic_weight": weight}, embeddings, batch, negatives)
        return values

    def _synthetic_loss(self, loss: nn.Module, batch: SyntheticBatch) -> Tensor:
        """Compute J_syn without regularizers: they count once, in J_m."""
        with without_regularizers(loss), outside_autocast(loss.parameters(), batch.embeddings):
            if self._checked_type is not type(loss):
                check_uses_negatives(loss, batch)
                self._checked_type = type(loss)
            return as_scalar(synthetic_loss(loss, batch), loss)

"""A memory of past batches, which gives references to the batch: after CrossBatchMemory, https://arxiv.org/abs/1912.06798"""

from typing import Any

import torch
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..generators.batch import Batch
from ..utils.host import to_device
from ..utils.records import hide_modules_from_records
from ..utils.running_statistics import WideBuffers
from ..utils.validation import check_positive_int
from .families import angular_synthetic_loss, synthetic_loss, triplet_synthetic_loss, tuple_synthetic_loss

TAKES_MEMORY = (angular_synthetic_loss, triplet_synthetic_loss, tuple_synthetic_loss)
OTHER_SIZE = (
    "memory_size is {own}, and the checkpoint is of memory_size={other}: build the loss with memory_size={other} to "
    "resume, or leave the keys of its memory out to begin with an empty one"
)


class Queue(WideBuffers):
    """The last `size` rows of past batches, first in, first out; all of it is in checkpoints.

    Embeddings are kept in float32, or in the dtype of the widest batch. A batch of more than `size` rows leaves its
    last ones.
    """

    embeddings: Tensor
    labels: Tensor
    progress: Tensor

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("progress", torch.zeros(2, dtype=torch.long))  # batches and rows that have entered
        self._read: tuple[Tensor | None, int, tuple[int, int]] = None, 0, (0, 0)

    def counts(self) -> tuple[int, int]:
        """Return how many batches and rows have entered; read from the device only if somebody else has set it."""
        of, version, counts = self._read
        if of is not self.progress or version != self.progress._version:
            batches, rows = self.progress.tolist()
            counts = batches, rows
            self._read = self.progress, self.progress._version, counts
        return counts

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Enter a batch, (B, D) and (B,) long, over the oldest rows."""
        (batches, rows), size = self.counts(), len(self.labels)
        dtype = torch.promote_types(self.embeddings.dtype, embeddings.dtype)
        if dtype != self.embeddings.dtype:
            self.embeddings = self.embeddings.to(dtype)
        first = max(len(labels) - size, 0)
        while first < len(labels):  # at most twice: to the end, and from the start
            place = (rows + first) % size
            count = min(size - place, len(labels) - first)
            for queue, values in ((self.embeddings, embeddings), (self.labels, labels)):
                queue[place : place + count] = values[first : first + count].detach()
            first += count
        self.progress[0] += 1
        self.progress[1] += len(labels)
        self._read = self.progress, self.progress._version, (batches + 1, rows + len(labels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}embeddings")
        if isinstance(found, Tensor) and found.ndim == 2 and len(found) != len(self.labels):
            error_messages: list[str] = args[-1]
            error_messages.append(OTHER_SIZE.format(own=len(self.labels), other=len(found)))
            return
        if isinstance(found, Tensor):
            self.embeddings = self.embeddings.to(torch.promote_types(found.dtype, self.embeddings.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)


class BatchMemory(nn.Module):
    """Past embeddings and labels, as references of a batch.

    Args:
        size: M, how many rows it holds.
        start: how many batches enter before it is used.
        embedding_size: D.
    """

    queue: Queue

    def __init__(self, size: int, start: int, embedding_size: int) -> None:
        super().__init__()
        self.size, self.start = size, start
        self.queue = Queue(size, embedding_size)
        hide_modules_from_records(self)

    def join(self, generator: BaseGenerator, embeddings: Tensor, labels: Tensor, phase: str) -> Batch:
        """Return the batch of (B, D) embeddings and (B,) labels, followed by the filled rows, if they are used now.

        Raises:
            TypeError, ValueError: as `BaseGenerator.batch`.
        """
        batches, rows = self.queue.counts()
        filled = min(rows, self.size) if batches >= self.start and len(embeddings) else 0
        if not filled:
            return generator.batch(embeddings, labels, phase=phase)
        labels = to_device(labels.long(), embeddings.device)
        nodes = torch.cat([embeddings, self.queue.embeddings[:filled].to(embeddings)])
        node_labels = torch.cat([labels, self.queue.labels[:filled].to(labels)])
        return generator.batch(nodes, node_labels, len(embeddings), phase, references_checked=True, num_memory=filled)

    def observe(self, batch: Batch, has_objective: bool) -> None:
        """Enter the anchors of a batch whose loss was computed.

        In an alternating schedule they enter after the second part, which sees the memory of the first. A generator
        without an objective (`has_objective` is False) has no second part.
        """
        if batch.phase != "embedding" or not has_objective:
            self.queue.add(batch.anchors, batch.anchor_labels)


def build_memory(memory_size: int, memory_start: int, generator: BaseGenerator) -> BatchMemory | None:
    """Check the options of a memory, and build it; None for a size of 0.

    Raises:
        TypeError, ValueError: an option is no integer, or negative; or there is a start, but no size.
    """
    check_positive_int("memory_size", memory_size, minimum=0)
    check_positive_int("memory_start", memory_start, minimum=0)
    if memory_start and not memory_size:
        raise ValueError(
            f"memory_start is used with a memory alone: set memory_size, too; got {memory_start} and no size"
        )
    return BatchMemory(int(memory_size), int(memory_start), generator.embedding_size) if memory_size else None


def check_memory(memory: BatchMemory | None) -> None:
    """Raise ValueError if there is a memory, for a call with references of its own."""
    if memory is not None:
        raise ValueError(
            f"ref_emb cannot be given to a loss with a memory of its own (memory_size={memory.size}): leave it out, or "
            "set memory_size=0. For several processes build the loss with gather_across_devices=True, and take PML's "
            "DistributedLossWrapper away"
        )


def takes_memory(loss: nn.Module) -> bool:
    """Return whether the wrapped loss, and not the graph alone, can see a memory.

    Losses over pairs or triplets with `ref_emb` can, and their subclasses. NCA cannot: it would take an anchor for its
    own positive. Nor can triplets with `swap`, which look distances up from positives, as rows of the batch.
    """
    return synthetic_loss.dispatch(type(loss)) in TAKES_MEMORY and not getattr(loss, "swap", False)


def labels_seen(batch: Batch, args: tuple[Any, ...]) -> tuple[Tensor, bool]:
    """Return the labels that the wrapped loss sees, and whether an anchor meets a positive there if it has one at all.

    Args:
        batch: anchors and references, among which there is a positive.
        args: of the loss, as from `with_memory`: with or without references.
    """
    if not batch.num_memory or len(args) > 3:
        return batch.labels, True
    own = batch.labels_on_host()[: batch.num_anchors]
    return batch.anchor_labels, len(own.unique()) < len(own)


def with_memory(loss: nn.Module, batch: Batch, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of the wrapped loss: with the pairs of batch and memory, if it can take them.

    Losses that take it (`takes_memory`) get the batch and the memory as references. Pairs are those of the call's
    `indices_tuple`, or all within the batch; and all from the batch to the memory. A loss that draws
    `triplets_per_anchor` draws them from batch and memory together. Other losses get `args` as they are.

    Args:
        loss: the wrapped loss.
        batch: B anchors and M memory nodes.
        args: of the loss: embeddings, labels, indices_tuple, and no references if there is a memory.
    """
    if not batch.num_memory or not takes_memory(loss):
        return args
    embeddings, labels, indices = args[:3]
    found: tuple[Tensor, ...]
    per_anchor = getattr(loss, "triplets_per_anchor", "all")
    if indices is None and per_anchor != "all":
        drawn = lmu.get_random_triplet_indices(labels, batch.labels, t_per_anchor=per_anchor)
        chosen = drawn[0] != drawn[1]  # PML takes the anchor for its own positive, as the references are another tensor
        found = tuple(index[chosen] for index in drawn)
    elif indices is None:
        alike = labels[:, None] == batch.labels
        differ = ~alike
        found = (*torch.where(alike.fill_diagonal_(False)), *torch.where(differ))
    else:
        within = lmu.convert_to_pairs(indices, labels)
        beyond = lmu.get_all_pairs_indices(labels, batch.labels[batch.num_anchors :])
        found = tuple(
            torch.cat([to_device(own, far.device), far + batch.num_anchors * (end % 2)])
            for end, (own, far) in enumerate(zip(within, beyond, strict=True))
        )
    return embeddings, labels, found, batch.embeddings, batch.labels

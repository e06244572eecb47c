"""References that PML passes beside a batch: they join its graph, unless they repeat a sample of the batch."""

from types import NoneType
from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor, nn

from ..generators.base_generator import BaseGenerator
from ..generators.batch import Batch
from ..utils.batch_checks import check_embeddings, check_finite
from ..utils.host import to_device
from .families import synthetic_loss
from .memory import BatchMemory, check_memory
from .supported import LABELS_REQUIRED, WITHOUT_REFERENCES, check_supported_loss


def check_arguments(
    loss: nn.Module,
    generator: BaseGenerator,
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: tuple[Tensor, ...] | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    memory: BatchMemory | None = None,
) -> None:
    """Raise unless a loss can be trained with these arguments, apart from their values.

    Args:
        loss: the wrapped loss.
        generator: the generator that the batch is for.
        indices_tuple: what a miner returned.
        embeddings, labels, ref_emb, ref_labels, memory: as for `make_batch`.

    Raises:
        TypeError, ValueError: there are no labels; `indices_tuple` is no tuple; PML's implementation of the loss takes
            no `ref_emb`; there is a memory beside it; or shapes or dtypes are not as `BaseGenerator.forward` requires.
    """
    if labels is None:
        raise ValueError(LABELS_REQUIRED)
    check_supported_loss(loss)  # the loss or its reducer may have been replaced
    generator.check_shapes(embeddings, labels)
    if not isinstance(indices_tuple, (tuple, list, NoneType)):
        call = ": call it, miner(embeddings, labels)" if isinstance(indices_tuple, BaseMiner) else ""
        raise TypeError(f"indices_tuple must be what a miner returns, got {type(indices_tuple).__name__}{call}")
    if ref_emb is None or (ref_emb is embeddings and ref_labels is labels):
        return
    check_memory(memory)
    if synthetic_loss.dispatch(type(loss)) in WITHOUT_REFERENCES:
        raise ValueError(
            f"ref_emb is not supported by the wrapped loss, {type(loss).__name__}; add the references to the batch: "
            "loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, ref_labels]))"
        )
    if ref_labels is not None:
        generator.check_shapes(ref_emb, ref_labels, ("ref_emb", "ref_labels"))
    elif ref_emb is not embeddings:
        check_embeddings(ref_emb, generator.embedding_size, "ref_emb")


def make_batch(
    generator: BaseGenerator,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    phase: str = "all",
    memory: BatchMemory | None = None,
) -> tuple[Batch, tuple[Any, ...]]:
    """Check the values of a batch and its references, and join them.

    Args:
        generator: the generator that the batch is for.
        embeddings, labels: (B, D) and (B,), the anchors, as `check_arguments` passes them.
        ref_emb, ref_labels: (R, D) and (R,), or None. PML also marks "no references" by passing the batch twice.
        phase: as for `BaseGenerator.batch`.
        memory: further references, of the graph alone here; see `with_memory`.

    Returns:
        The batch of anchors and references; and the further arguments of the wrapped loss. These are labels, long on
        the device of the embeddings, and references if any. Without `ref_labels` only the wrapped loss gets them.

    Raises:
        TypeError, ValueError: batch or references are not as `BaseGenerator.forward` requires.
    """
    if ref_emb is None or (ref_emb is embeddings and ref_labels is labels):
        if memory is not None:
            batch = memory.join(generator, embeddings, labels, phase)
            return batch, (batch.anchor_labels,)
        batch = generator.batch(embeddings, labels, phase=phase)
        return batch, (batch.labels,)
    if ref_labels is None:
        if ref_emb is not embeddings:
            check_finite(ref_emb, "ref_emb")
        batch = generator.batch(embeddings, labels, phase=phase)
        return batch, (batch.labels, ref_emb, None)
    generator.batch(ref_emb, ref_labels, names=("ref_emb", "ref_labels")).finish()
    labels, ref_labels = to_device(labels.long(), embeddings.device), ref_labels.long()
    nodes, node_labels, _ = join_references(embeddings, labels, ref_emb, ref_labels)
    # PML compares labels by identity: the same object stays the same object.
    batch = generator.batch(nodes, node_labels, len(embeddings), phase, references_checked=True)
    return batch, (labels, ref_emb, ref_labels)


def join_references(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the references that are not samples of the batch.

    PML passes references that repeat the batch (`DistributedLossWrapper(efficient=True)`, memories). A copy of an
    anchor, with the same label, must become neither its positive nor a second node of the graph. If samples of the
    batch are equal, their copies are matched in order: the first copy is the first such sample, the second the second,
    and so on. Further copies are nodes of their own.

    Args:
        embeddings: (B, D).
        labels: (B,) long.
        ref_emb: (R, D).
        ref_labels: (R,).

    Returns:
        `(nodes, node_labels, node_of)`: (N, D) and (N,) with B ≤ N ≤ B + R, references without gradient; and (R,)
        long, the node of each reference.
    """
    batch, references = embeddings.detach(), ref_emb.detach().to(embeddings)
    rows, row_labels = torch.cat([batch, references]), torch.cat([labels, ref_labels.to(labels)])
    size, kinds = len(batch), []
    # In parts: all comparisons at once would take (B + R) x B x D bytes.
    for part, part_labels in zip(rows.split(256), row_labels.split(256), strict=True):
        if size:
            equal = (part[:, None] == batch).all(dim=2) & (part_labels[:, None] == labels)
            found, first = equal.byte().max(dim=1)
            kinds.append(torch.where(found.bool(), first, size))  # the first equal sample, if there is one
    kind = torch.cat(kinds) if kinds else torch.full((len(rows),), size, device=batch.device)
    samples, order = kind[:size].sort(stable=True)
    place = torch.searchsorted(samples, kind[size:]) + occurrence(kind[size:])
    new = torch.cat([samples, samples.new_full((1,), -1)])[place.clamp_max(size)] != kind[size:]
    node_of = torch.cat([order, order.new_zeros(1)])[place.clamp_max(size)]
    node_of = torch.where(new, size + new.cumsum(0) - 1, node_of)
    return torch.cat([embeddings, references[new]]), torch.cat([labels, row_labels[size:][new]]), node_of


def occurrence(values: Tensor) -> Tensor:
    """Count how often each of (N,) values occurs earlier in the tensor: 0 for the first of its kind."""
    ordered, order = values.sort(stable=True)
    count = torch.arange(len(values), device=values.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(count).scatter(0, order, count)

"""References that PML hands over beside a batch: which of them repeat a sample of it."""

import torch
from torch import Tensor


def join_references(
    embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch followed by the references that are none of its samples.

    PML hands over references that repeat the batch (``DistributedLossWrapper(efficient=True)``, memories). A copy of
    an anchor, label and all, must become neither its positive nor a second node of the graph. Where samples of one
    batch are equal, copies are told apart by their order: the first reference of a kind is the first sample of it, the
    second the second, and so on. References beyond the samples of their kind are nodes of their own.

    Args:
        embeddings: (B, D).
        labels: (B,) long.
        ref_emb: (R, D).
        ref_labels: (R,).

    Returns:
        ``(nodes, node_labels, node_of)``: (N, D) and (N,) with B ≤ N ≤ B + R, references without gradient; and (R,)
        long, the node that each reference is.
    """
    batch, references = embeddings.detach(), ref_emb.detach().to(embeddings)
    rows, row_labels = torch.cat([batch, references]), torch.cat([labels, ref_labels.to(labels)])
    size, kinds = len(batch), []
    # In parts, as all comparisons at once would take (B + R) x B x D bytes.
    for part, part_labels in zip(rows.split(256), row_labels.split(256), strict=True):
        if size:
            equal = (part[:, None] == batch).all(dim=2) & (part_labels[:, None] == labels)
            found, first = equal.byte().max(dim=1)
            kinds.append(torch.where(found.bool(), first, size))  # the first sample that is equal, if one is
    kind = torch.cat(kinds) if kinds else torch.full((len(rows),), size, device=batch.device)
    samples, order = kind[:size].sort(stable=True)
    place = torch.searchsorted(samples, kind[size:]) + occurrence(kind[size:])
    new = torch.cat([samples, samples.new_full((1,), -1)])[place.clamp_max(size)] != kind[size:]
    node_of = torch.cat([order, order.new_zeros(1)])[place.clamp_max(size)]
    node_of = torch.where(new, size + new.cumsum(0) - 1, node_of)
    return torch.cat([embeddings, references[new]]), torch.cat([labels, row_labels[size:][new]]), node_of


def occurrence(values: Tensor) -> Tensor:
    """How often each of (N,) values came before in the tensor: 0 for the first of its kind, then 1, 2, ..."""
    ordered, order = values.sort(stable=True)
    count = torch.arange(len(values), device=values.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(count).scatter(0, order, count)

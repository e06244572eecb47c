"""A memory of all training classes: it chooses which classes meet in a batch, and which are the hardest negatives."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pml_gca.generators import BaseGenerator, Batch, SyntheticNegatives
from pml_gca.generators.planning import next_positive

MOMENTUM = 0.9
"""Of the moving averages."""


class ClassMemory(nn.Module):
    """Prototypes: a moving average of the embeddings of each training class.

    Args:
        num_classes: N.
        embedding_size: D.
    """

    means: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, embedding_size))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the prototypes of the classes in a batch of (B, D) embeddings; those new to the memory are its means."""
        counts = labels.bincount(minlength=len(self.means))[:, None]
        batch = torch.zeros_like(self.means).index_add(0, labels, embeddings.to(self.means)) / counts.clamp_min(1)
        moved = torch.where(self.seen[:, None], torch.lerp(batch, self.means, MOMENTUM), batch)
        self.means.copy_(torch.where(counts > 0, moved, self.means))
        self.seen |= counts[:, 0] > 0

    @torch.no_grad()
    def nearest_groups(self, order: Tensor, count: int, size: int) -> Tensor:
        """Choose the classes of a batch: groups of a class and those nearest to it.

        Args:
            order: (N,) long, all classes in the order in which groups start. It also decides between equally near
                ones, such as those that the memory has not seen, which are as near as orthogonal prototypes.
            count: of classes.
            size: of a group.

        Returns:
            (count,) long; group after group, without repetition.
        """
        means = normalize(self.means).to(order.device)
        chosen: list[int] = []
        for start in order.tolist():
            if start in chosen:
                continue
            nearest = order[(means[order] @ means[start]).argsort(descending=True, stable=True)].tolist()
            others = [c for c in nearest if c != start and c not in chosen]
            chosen += [start, *others[: size - 1]]
            if len(chosen) >= count:
                break
        return torch.tensor(chosen[:count])


class PrototypeGenerator(BaseGenerator):
    """Negatives from a memory: for each anchor, prototypes of other classes, of all that were seen. It learns nothing.

    Args:
        num_classes: N.
        embedding_size: D.
        count: negatives of an anchor; fewer while the memory has seen fewer classes.
        hardest: take those of the largest cosine similarity to the anchor, else random ones.
    """

    def __init__(self, num_classes: int, embedding_size: int, *, count: int = 1, hardest: bool = True) -> None:
        super().__init__(num_classes, embedding_size)
        self.count, self.hardest = count, hardest
        self.memory = ClassMemory(num_classes, embedding_size)

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Update the memory, then take the negatives; anchors without a positive get none."""
        self.reset_stats()
        anchors, labels, memory = batch.anchors.detach(), batch.anchor_labels, self.memory
        memory.update(anchors, labels)
        _, has_positive = next_positive(batch.labels, batch.num_anchors)
        shape = len(anchors), self.num_classes
        scores = normalize(anchors) @ normalize(memory.means).t() if self.hardest else torch.rand(shape).to(anchors)
        scores = scores.masked_fill(~memory.seen, -math.inf).scatter(1, labels[:, None], -math.inf)
        chosen = scores.topk(min(self.count, int(memory.seen.sum()) - 1)).indices[has_positive]
        owners = has_positive.nonzero().expand(-1, chosen.shape[1]).flatten()
        negatives = memory.means[chosen.flatten()].to(batch.embeddings.dtype)
        return SyntheticNegatives(negatives, chosen.flatten(), owners, num_skipped_anchors=int((~has_positive).sum()))

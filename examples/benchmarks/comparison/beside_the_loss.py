"""Additions to a loss that need no generator: a classifier, a miner, a memory, synthetic classes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from comparison.classifiers import CLASSIFIERS, GraphClassifier
from pml_gca.losses import NAMED_LOSSES

LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    **NAMED_LOSSES,
    "nt_xent": lambda num_classes, size: losses.NTXentLoss(temperature=0.1),
}


class Extras:
    """The loss of a run, with the additions of its settings.

    Args:
        settings: `classifier`, one of `CLASSIFIERS`, adds `classifier_weight` (1 by default) times its cross-entropy;
            `crossed` adds this many synthetic classes for each class; `miner` is a miner of PML by name; `memory`, the
            size of a `CrossBatchMemory`. All may be absent.
        num_classes: training classes N.
        loss: of PML or ours.
        device: of the classifier.
    """

    def __init__(self, settings: Mapping[str, Any], num_classes: int, loss: nn.Module, device: str) -> None:
        self.loss, self.num_classes, size = loss, num_classes, settings["embedding_size"]
        self.classifier = None
        if kind := settings.get("classifier"):
            self.classifier = CLASSIFIERS[kind](num_classes, size).to(device)
        self.weight, self.graph_lr = settings.get("classifier_weight", 1.0), settings["generator_lr"]
        self.miner = getattr(miners, settings["miner"])() if settings.get("miner") else None
        if settings.get("memory"):
            self.loss = losses.CrossBatchMemory(loss, size, memory_size=settings["memory"])
        self.num_partners = settings.get("crossed", 0)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's group of the classifier, if there is one; a graph learns at the generator's rate."""
        own = self.graph_lr if isinstance(self.classifier, GraphClassifier) else lr
        return [{"params": list(self.classifier.parameters()), "lr": own}] if self.classifier else []

    def total(self, network: Any, features: Tensor | None, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            network: whose `head` embeds the crossed features.
            features: (B, F), what the head took; only needed for synthetic classes.
            embeddings: (B, D).
            labels: (B,) long.
        """
        total: Tensor = self.loss(embeddings, labels, *([self.miner(embeddings, labels)] if self.miner else []))
        if self.num_partners and features is not None:
            rows, row_labels = cross_classes(features, labels, self.num_partners, self.num_classes)
            everything = torch.cat([embeddings, network.head(rows)])
            total = (total + self.loss(everything, torch.cat([labels, row_labels]))) / 2
        if self.classifier is not None:
            logits = self.classifier(embeddings, labels)
            total = total + self.weight * nn.functional.cross_entropy(logits, labels)
        return total


def cross_classes(features: Tensor, labels: Tensor, num_partners: int, first_label: int) -> tuple[Tensor, Tensor]:
    """Cross each class of a batch with `num_partners` others into new classes.

    A pair of classes draws one coin per channel. The m-th samples of both, channel by channel, give the m-th sample of
    the new class: from the one where the coin shows heads, else from the other.

    Args:
        features: (B, F), of any classes.
        labels: (B,) long.
        num_partners: P, new classes for each class; fewer if the batch has no more others.
        first_label: label of the first new class; the others follow.

    Returns:
        `(rows, row_labels)`: (S, F) with gradient, and (S,) long. Both are empty for a batch of one class.
    """
    classes, class_of, sizes = labels.unique(return_inverse=True, return_counts=True)
    count, sizes = len(classes), sizes.tolist()
    by_class = class_of.argsort(stable=True).split(sizes)
    order = torch.randperm(count).tolist()
    heads_rows, tails_rows, pair_of, num_pairs = [], [], [], 0
    for step in range(1, min(num_partners, count - 1) + 1):
        for place in range(count):
            one, other = by_class[order[place]], by_class[order[(place + step) % count]]
            size = min(len(one), len(other))
            heads_rows.append(one[:size])
            tails_rows.append(other[:size])
            pair_of += [num_pairs] * size
            num_pairs += 1
    if num_pairs == 0:
        return features[:0], labels[:0]
    pairs = torch.tensor(pair_of, device=labels.device)
    coins = torch.rand(num_pairs, features.shape[1], device=features.device) < 0.5
    rows = torch.where(coins[pairs], features[torch.cat(heads_rows)], features[torch.cat(tails_rows)])
    return rows, pairs + first_label

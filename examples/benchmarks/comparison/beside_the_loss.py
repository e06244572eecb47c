"""Additions to a loss that need no generator: a classifier, a miner, a memory, classes that meet, synthetic classes."""

from collections.abc import Callable, Mapping
from typing import Any

from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from comparison.class_memory import ClassMemory
from comparison.classifiers import CLASSIFIERS, GraphClassifier
from comparison.crossing import Crossing
from comparison.soft_labels import ProxyAnchor
from pml_gca.losses import NAMED_LOSSES

LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    **NAMED_LOSSES,
    "proxy_anchor": ProxyAnchor,
    "nt_xent": lambda num_classes, size: losses.NTXentLoss(temperature=0.1),
}


class Extras:
    """The loss of a run, with the additions of its settings.

    Args:
        settings: `classifier`, one of `CLASSIFIERS`, adds `classifier_weight` (1 by default) times its cross-entropy;
            `crossed` adds synthetic classes, see `Crossing`; `miner` is a miner of PML by name; `memory`, the size of a
            `CrossBatchMemory`; `group` lets classes meet in groups of this size, see `ClassMemory`. All may be absent.
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
        self.crossing = Crossing(settings, num_classes) if settings.get("crossed") else None
        self.group: int = settings.get("group", 0)
        self.class_memory = ClassMemory(num_classes, size).to(device) if self.group else None

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's group of the classifier, if there is one; a graph learns at the generator's rate."""
        own = self.graph_lr if isinstance(self.classifier, GraphClassifier) else lr
        return [{"params": list(self.classifier.parameters()), "lr": own}] if self.classifier else []

    def choose_classes(self, order: Tensor, count: int) -> Tensor:
        """Return the `count` classes of the next batch, for all classes in random order: the first, or groups."""
        return self.class_memory.nearest_groups(order, count, self.group) if self.class_memory else order[:count]

    def total(self, network: Any, features: Tensor | None, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            network: whose `head` embeds the crossed features.
            features: (B, F), what the head took; only needed for synthetic classes.
            embeddings: (B, D).
            labels: (B,) long.
        """
        total: Tensor = self.loss(embeddings, labels, *([self.miner(embeddings, labels)] if self.miner else []))
        if self.class_memory is not None:
            self.class_memory.update(embeddings.detach(), labels)
        if self.crossing is not None and features is not None:
            total = self.crossing.total(total, self.loss, network, features, embeddings, labels)
        if self.classifier is not None:
            logits = self.classifier(embeddings, labels)
            total = total + self.weight * nn.functional.cross_entropy(logits, labels)
        return total

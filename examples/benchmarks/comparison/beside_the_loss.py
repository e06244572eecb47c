"""Additions to a loss that need no generator: a classifier, a miner, a memory, classes that meet, synthetic classes."""

from collections.abc import Callable, Mapping
from typing import Any

from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from comparison.at_features import loss_at_features
from comparison.class_graph import LearnedCrossing, make_crossing
from comparison.class_memory import ClassMemory
from comparison.classifiers import CLASSIFIERS, GraphClassifier
from comparison.soft_labels import ProxyAnchor
from comparison.two_streams import TwoStreams
from pml_gca.generators import BaseGenerator, ConstantGenerator, RandomGenerator
from pml_gca.losses import NAMED_LOSSES

LOSSES: dict[str, Callable[[int, int], nn.Module]] = {
    **NAMED_LOSSES,
    "proxy_anchor": ProxyAnchor,
    "sup_con": lambda num_classes, size: losses.SupConLoss(temperature=0.1),
}
AT_FEATURES: dict[str, Callable[..., BaseGenerator]] = {"coin": RandomGenerator, "constant": ConstantGenerator}


class Extras:
    """The loss of a run, with the additions of its settings.

    Args:
        settings: all may be absent. `classifier`, one of `CLASSIFIERS`, or `streams`, those of a `TwoStreams`, adds
            `classifier_weight` (1 by default) times its cross-entropy, with `label_smoothing` and `temperature`.
            `crossed` adds synthetic classes, see `Crossing`. `at_features` adds synthetic negatives made of features,
            with λ by `"coin"` or `"constant"`. `miner` is a miner of PML by name; `memory`, the size of a
            `CrossBatchMemory`. `group` lets classes meet in groups of this size, see `ClassMemory`.
        num_classes: training classes N.
        loss: of PML or ours.
        device: of the classifier.
        num_features: channels F of the features that the head embeds.
    """

    def __init__(
        self, settings: Mapping[str, Any], num_classes: int, loss: nn.Module, device: str, *, num_features: int = 0
    ) -> None:
        self.loss, self.num_classes, size = loss, num_classes, settings["embedding_size"]
        self.classifier: nn.Module | None = None
        if kind := settings.get("classifier"):
            self.classifier = CLASSIFIERS[kind](num_classes, size).to(device)
        elif kind := settings.get("streams"):
            self.classifier = TwoStreams(num_classes, size, streams=kind).to(device)
        self.weight, self.graph_lr = settings.get("classifier_weight", 1.0), settings["generator_lr"]
        self.miner = getattr(miners, settings["miner"])() if settings.get("miner") else None
        if settings.get("memory"):
            self.loss = losses.CrossBatchMemory(loss, size, memory_size=settings["memory"])
        self.smoothing, self.temperature = settings.get("label_smoothing", 0.0), settings.get("temperature", 1.0)
        self.crossing = make_crossing(settings, num_classes, num_features)
        if isinstance(self.crossing, LearnedCrossing):
            self.crossing.graph.to(device)
        self.at_features: BaseGenerator | None = None
        if kind := settings.get("at_features"):
            self.at_features = AT_FEATURES[kind](num_classes, num_features, alpha=0.0, merging="hardest")
        self.needs_features = self.crossing is not None or self.at_features is not None
        self.group: int = settings.get("group", 0)
        self.class_memory = ClassMemory(num_classes, size).to(device) if self.group else None

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups of what learns here; graphs learn at the generator's rate."""
        groups: list[dict[str, Any]] = []
        if isinstance(self.classifier, TwoStreams):
            groups = self.classifier.parameter_groups(lr, self.graph_lr)
        elif self.classifier:
            own = self.graph_lr if isinstance(self.classifier, GraphClassifier) else lr
            groups = [{"params": list(self.classifier.parameters()), "lr": own}]
        if isinstance(self.crossing, LearnedCrossing):
            groups.append({"params": list(self.crossing.graph.parameters()), "lr": self.graph_lr})
        return groups

    def choose_classes(self, order: Tensor, count: int) -> Tensor:
        """Return the `count` classes of the next batch, for all classes in random order: the first, or groups."""
        return self.class_memory.nearest_groups(order, count, self.group) if self.class_memory else order[:count]

    def total(self, network: Any, features: Tensor | None, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            network: whose `head` embeds synthetic features.
            features: (B, F), what the head took; only if `needs_features`.
            embeddings: (B, D).
            labels: (B,) long.
        """
        total: Tensor = self.loss(embeddings, labels, *([self.miner(embeddings, labels)] if self.miner else []))
        if self.class_memory is not None:
            self.class_memory.update(embeddings.detach(), labels)
        if self.crossing is not None and features is not None:
            total = self.crossing.total(total, self.loss, network, features, embeddings, labels)
        if self.at_features is not None and features is not None:
            total = total + loss_at_features(self.loss, self.at_features, network, features, embeddings, labels)
        if self.classifier is not None:
            logits = self.classifier(embeddings, labels) / self.temperature
            targets = labels.repeat(len(logits) // len(labels))  # of one stream or two
            term = nn.functional.cross_entropy(logits, targets, label_smoothing=self.smoothing)
            total = total + self.weight * term
        return total

"""Soft labels: a synthetic negative that is made of two classes counts for both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from torch import Tensor, nn

from pml_gca.correlation.edges import to_dense
from pml_gca.generators import BaseGenerator, Batch, SyntheticNegatives
from pml_gca.generators.interpolation import pull_ratio
from pml_gca.generators.interpolation_generator import InterpolationGenerator
from pml_gca.generators.merging import class_weights
from pml_gca.generators.planning import on_device, plan_candidates
from pml_gca.losses import synthetic_loss
from pml_gca.losses.families import SyntheticBatch

TERM = "soft_classification_loss"


@dataclass(frozen=True)
class SoftNegatives(SyntheticNegatives):
    """Synthetic negatives with soft labels.

    Attributes:
        shares: (S,) in [0, 1], how much of each counts for its own class; the rest counts for the anchor's.
    """

    shares: Tensor = field(default_factory=lambda: torch.ones(0))


def soft_targets(negatives: SyntheticNegatives, anchor_labels: Tensor, num_classes: int) -> Tensor:
    """Return the (S, num_classes) targets of synthetic negatives, whose rows sum to 1; hard ones without shares."""
    hard = F.one_hot(negatives.labels, num_classes).float()
    if not isinstance(negatives, SoftNegatives):
        return hard
    owners = F.one_hot(anchor_labels[negatives.anchors], num_classes)
    return torch.lerp(owners.to(hard), hard, negatives.shares.to(hard)[:, None])


class ProxyAnchor(losses.ProxyAnchorLoss):
    """PML's Proxy Anchor loss, which also takes soft labels."""

    def soft(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of (R, D) embeddings with (R, N) targets.

        A sample counts in the sum over positives of a proxy by its target there, and in the sum over negatives by the
        rest. With targets of 0 and 1 this is PML's loss.
        """
        similarity = self.get_logits(embeddings)
        positives = targets * (-self.alpha * (similarity - self.margin)).exp()
        negatives = (1 - targets) * (self.alpha * (similarity + self.margin)).exp()
        there = (targets > 0).any(dim=0).sum()
        value: Tensor = positives.sum(0).log1p().sum() / there + negatives.sum(0).log1p().mean()
        return value


@synthetic_loss.register(ProxyAnchor)
def soft_proxy_loss(loss: ProxyAnchor, batch: SyntheticBatch) -> Tensor:
    """Compute J_syn: the loss of anchors and synthetic negatives together, by their soft labels if they have such."""
    embeddings = torch.cat([batch.embeddings, batch.negatives.embeddings])
    if not isinstance(batch.negatives, SoftNegatives):
        value: Tensor = loss(embeddings, torch.cat([batch.labels, batch.negatives.labels]))
        return value
    targets = soft_targets(batch.negatives, batch.labels, loss.num_classes)
    return loss.soft(embeddings, torch.cat([F.one_hot(batch.labels, loss.num_classes).to(targets), targets]))


class SoftlyLabelled(InterpolationGenerator):
    """Mixed into a generator that interpolates: its negatives have soft labels.

    The share of a negative is the mean over its channels of λ, merged as the negative is. With `by_ratio` it is that of
    r = a + b λ, how far from its anchor the negative lies in fact.
    """

    by_ratio = False

    def coefficients_of_edges(self, *args: Any) -> Tensor:
        """Return the generator's, and remember them until the negatives are made."""
        self._coefficients: Tensor = super().coefficients_of_edges(*args)
        return self._coefficients

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf, **given: Any) -> SoftNegatives:
        """Return the negatives with their shares, without gradient."""
        nodes = batch.nodes.detach()
        draws = torch.rand(batch.num_anchors, len(nodes), dtype=nodes.dtype, device=nodes.device)
        made = super().generate(batch, metric_level, draws=draws, **given)
        plan = on_device(plan_candidates(batch.labels_on_host(), batch.num_anchors), nodes.device)
        shares = to_dense(self._coefficients.detach().to(nodes).mean(dim=1), len(nodes))[: batch.num_anchors]
        if self.by_ratio:
            near = (nodes[: batch.num_anchors] - nodes[plan.positives]).norm(dim=1, keepdim=True)
            far = torch.cdist(nodes[: batch.num_anchors], nodes)
            constant, slope = pull_ratio(near, far, self.interpolation_strength(metric_level).to(nodes))
            shares = constant + slope * shares
        weighted = (class_weights(self.merging, nodes, plan, draws) * shares).flatten()
        merged = nodes.new_zeros(len(made) + 1).index_add(0, plan.slots.flatten(), weighted)[:-1]
        values = {name: getattr(made, name) for name in SyntheticNegatives.__dataclass_fields__}
        return SoftNegatives(**values, shares=merged)


class ClassifiedSoftly(BaseGenerator):
    """Any generator, and a linear classifier that also learns from its negatives, by soft labels if they have such.

    Its objective is the mean of two cross-entropies: of the anchors, and of the negatives. Both train the embeddings.
    """

    def __init__(self, generator: BaseGenerator) -> None:
        super().__init__(generator.num_classes, generator.embedding_size)
        self.generator, self.has_objective = generator, generator.has_objective
        self.classifier = nn.Linear(generator.embedding_size, generator.num_classes)

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Return the generator's negatives with one more objective."""
        negatives = self.generator.generate(batch, metric_level)
        targets = soft_targets(negatives, batch.anchor_labels, self.num_classes)
        real = F.cross_entropy(self.classifier(batch.anchors), batch.anchor_labels)
        made = F.cross_entropy(self.classifier(negatives.embeddings), targets)
        objectives: Mapping[str, Tensor] = {TERM: (real + made) / 2, **negatives.objectives}
        return replace(negatives, objectives=objectives)

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return the groups of the generator inside, and the classifier at `classifier_lr`."""
        groups = self.generator.parameter_groups(lr, classifier_lr=classifier_lr)
        groups.append({"params": list(self.classifier.parameters()), "lr": classifier_lr})
        return [group for group in groups if group["params"]]

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return those of the generator inside."""
        return self.generator.objective_parameters()

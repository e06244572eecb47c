"""Plans: which rows of a batch make up each synthetic negative.

How many there are depends on the labels. Make plans with labels on the host, to avoid waiting for a device.
Axis legend: N rows of a batch, of which the first A are anchors; S synthetic negatives.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..utils.host import together_to_device

Plan = TypeVar("Plan", "CandidatePlan", "NegativePairs", "ClassPlan")


def next_positive(labels: Tensor, num_anchors: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the next sample of each anchor's class in batch order, cyclically.

    Args:
        labels: (N,) long.
        num_anchors: A, how many of the first nodes are anchors; all by default.

    Returns:
        `(positives, has_positive)`: (A,) long and (A,) bool. An anchor alone in its class points at itself.
    """
    node = torch.arange(len(labels), device=labels.device)
    anchor = node[:num_anchors, None]
    steps = (node - anchor - 1) % max(len(labels), 1)  # the anchor itself is the farthest of its class
    steps = steps.masked_fill(labels[:num_anchors, None] != labels, len(labels))
    positives = steps.argmin(dim=1) if len(labels) else node
    return positives, positives != node[:num_anchors]


@dataclass(frozen=True)
class CandidatePlan:
    """The real samples that make up each synthetic negative; depends on labels alone.

    Attributes:
        slots: (A, N) long, the synthetic negative that the candidate of an anchor and a node is merged into. It is S
            if there is no candidate: the two are of one class, or the anchor has no positive.
        synthetic_anchors: (S,) long, ascending.
        synthetic_labels: (S,) long, ascending within an anchor.
        classes: (C,) long, the labels of all rows, each once, ascending.
        positives: (A,) long, see `next_positive`.
        has_positive: (A,) bool; anchors without a positive generate nothing.
        by_class: (N,) long, nodes sorted by class, in batch order within a class.
        opens_class: (N,) bool, for the sorted nodes: whether a node is the first of its class.
        closes_class: (N,) long, for the sorted nodes: position of the last node of the same class.
        largest_class: how many nodes the largest class has.
        num_skipped_anchors: anchors without a positive.
    """

    slots: Tensor
    synthetic_anchors: Tensor
    synthetic_labels: Tensor
    classes: Tensor
    positives: Tensor
    has_positive: Tensor
    by_class: Tensor
    opens_class: Tensor
    closes_class: Tensor
    largest_class: int
    num_skipped_anchors: int


def plan_candidates(labels: Tensor, num_anchors: int | None = None) -> CandidatePlan:
    """Pair every anchor that has a positive with all nodes of other classes, by (anchor, class).

    Args:
        labels: (N,) long, any composition and order.
        num_anchors: A, how many of the first nodes are anchors; all by default.
    """
    classes, class_of, class_size = labels.unique(return_inverse=True, return_counts=True)
    anchor_class = class_of[:num_anchors]
    positives, has_positive = next_positive(labels, num_anchors)
    cell_anchor, cell_class = (
        (anchor_class[:, None] != torch.arange(len(classes), device=labels.device)) & has_positive[:, None]
    ).nonzero(as_tuple=True)
    # Every generating anchor meets all classes but its own, so the slot follows from two ranks.
    anchor_rank = has_positive.cumsum(0) - 1
    class_rank = class_of - (class_of > anchor_class[:, None]).long()
    generates = (anchor_class[:, None] != class_of) & has_positive[:, None]
    by_class = class_of.argsort(stable=True)
    class_end = class_size.cumsum(0)
    position = torch.arange(len(labels), device=labels.device)
    return CandidatePlan(
        slots=torch.where(generates, anchor_rank[:, None] * (len(classes) - 1) + class_rank, len(cell_anchor)),
        synthetic_anchors=cell_anchor,
        synthetic_labels=classes[cell_class],
        classes=classes,
        positives=positives,
        has_positive=has_positive,
        by_class=by_class,
        opens_class=position == (class_end - class_size)[class_of[by_class]],
        closes_class=class_end[class_of[by_class]] - 1,
        largest_class=int(class_size.max()) if len(labels) else 0,
        num_skipped_anchors=int((~has_positive).sum()),
    )


@dataclass(frozen=True)
class NegativePairs:
    """Every anchor that has a positive, with every sample of another class: P pairs.

    Attributes:
        anchors: (P,) long, ascending.
        negatives: (P,) long, ascending within an anchor.
        labels: (P,) long, of the negatives.
        positives: (A,) long, see `next_positive`.
        by_class: (N,) long, rows sorted by class, in batch order within a class.
        opens: (A,) long, where in `by_class` the anchor's class begins.
        places: (A,) long, rank of the anchor in its class there, from 0.
        num_positives: (A,) long, further samples of the anchor's class.
        num_skipped_anchors: anchors without a positive, which are in no pair.
    """

    anchors: Tensor
    negatives: Tensor
    labels: Tensor
    positives: Tensor
    by_class: Tensor
    opens: Tensor
    places: Tensor
    num_positives: Tensor
    num_skipped_anchors: int

    def positives_after(self, steps: Tensor) -> Tensor:
        """Return the positive that comes `steps` (P,) positives after the next one of each pair's anchor, cyclically.

        Steps from 0 to `num_positives` − 1 reach each positive once.
        """
        opens, places, others = (x[self.anchors] for x in (self.opens, self.places, self.num_positives))
        return self.by_class[opens + (places + 1 + steps) % (others + 1)]


def plan_negative_pairs(labels: Tensor, num_anchors: int) -> NegativePairs:
    """Pair anchors with negatives.

    Args:
        labels: (N,) long, any composition and order.
        num_anchors: A, how many of the first rows are anchors.
    """
    positives, has_positive = next_positive(labels, num_anchors)
    anchors, negatives = ((labels[:num_anchors, None] != labels) & has_positive[:, None]).nonzero(as_tuple=True)
    _, class_of, class_size = labels.unique(return_inverse=True, return_counts=True)
    by_class = class_of.argsort(stable=True)
    anchor_class = class_of[:num_anchors]
    opens = (class_size.cumsum(0) - class_size)[anchor_class]
    return NegativePairs(
        anchors=anchors,
        negatives=negatives,
        labels=labels[negatives],
        positives=positives,
        by_class=by_class,
        opens=opens,
        places=by_class.argsort()[:num_anchors] - opens,
        num_positives=class_size[anchor_class] - 1,
        num_skipped_anchors=int((~has_positive).sum()),
    )


@dataclass(frozen=True)
class ClassPlan:
    """Every anchor that has a positive, with every other class: S cells; and the pairs within classes: Q.

    Attributes:
        anchors: (S,) long, ascending.
        classes: (S,) long, ascending within an anchor; counted among the C classes of the batch.
        labels: (S,) long, of these classes.
        class_of: (N,) long, class of each row, counted likewise.
        first, second: (Q,) long, the two rows of each pair of one class, the first one being earlier in the batch.
        num_classes: C.
        num_skipped_anchors: anchors without a positive, which are in no cell.
    """

    anchors: Tensor
    classes: Tensor
    labels: Tensor
    class_of: Tensor
    first: Tensor
    second: Tensor
    num_classes: int
    num_skipped_anchors: int


def plan_classes(labels: Tensor, num_anchors: int, with_pairs: bool = True) -> ClassPlan:
    """Return cells and pairs of a batch; arguments as for `plan_negative_pairs`. Without pairs, Q is 0.

    Finding pairs takes N² comparisons.
    """
    candidates = plan_candidates(labels, num_anchors)
    names, class_of = labels.unique(return_inverse=True)
    first = second = class_of[:0]
    if with_pairs:
        first, second = (class_of[:, None] == class_of).triu(1).nonzero(as_tuple=True)
    return ClassPlan(
        anchors=candidates.synthetic_anchors,
        classes=torch.searchsorted(names, candidates.synthetic_labels),
        labels=candidates.synthetic_labels,
        class_of=class_of,
        first=first,
        second=second,
        num_classes=len(names),
        num_skipped_anchors=candidates.num_skipped_anchors,
    )


def on_device(plan: Plan, device: torch.device) -> Plan:
    """Return a plan that was made on the host on a device, without waiting for it."""
    if device.type == "cpu":
        return plan
    found = {f.name: x for f in fields(plan) if isinstance(x := getattr(plan, f.name), Tensor)}
    moved: dict[str, Any] = dict(zip(found, together_to_device(list(found.values()), device), strict=True))
    return replace(plan, **moved)

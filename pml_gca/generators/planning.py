"""Which rows of a batch make up synthetic negatives, for generators that need no graph.

How many there are depends on the values of labels, so that plans are made with labels on the host, as no device has
to be waited for there. Axis legend: N rows of a batch, of which the first A are anchors.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..utils.host import to_device
from .interpolation import next_positive, plan_candidates

Plan = TypeVar("Plan", "NegativePairs", "ClassPlan")


@dataclass(frozen=True)
class NegativePairs:
    """Every anchor that has a positive, with every sample of another class: P pairs.

    Attributes:
        anchors: (P,) long, ascending.
        negatives: (P,) long, ascending within an anchor.
        labels: (P,) long, of the negatives.
        positives: (A,) long, see `next_positive`.
        by_class: (N,) long, rows sorted by class, in batch order within a class.
        opens: (A,) long, where in ``by_class`` the anchor's class begins.
        places: (A,) long, which of its class the anchor is there, from 0 on.
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
        """The positive of each pair's anchor that follows ``steps`` (P,) samples after its next one, cyclically.

        Steps from 0 to ``num_positives`` − 1 meet each positive once.
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


def plan_classes(labels: Tensor, num_anchors: int) -> ClassPlan:
    """Cells and pairs of a batch; arguments as for `plan_negative_pairs`."""
    candidates = plan_candidates(labels, num_anchors)
    names, class_of = labels.unique(return_inverse=True)
    first, second = (class_of[:, None] == class_of).triu(1).nonzero(as_tuple=True)
    return ClassPlan(
        anchors=candidates.synthetic_anchors,
        classes=torch.searchsorted(names, candidates.synthetic_labels),
        labels=candidates.synthetic_labels,
        class_of=class_of,
        first=first,
        second=second,
        num_classes=len(names),
        num_skipped_anchors=int((~candidates.has_positive).sum()),
    )


def on_device(plan: Plan, device: torch.device) -> Plan:
    """A plan on another device, without waiting for it."""
    moved: dict[str, Any] = {
        f.name: to_device(x, device) for f in fields(plan) if isinstance(x := getattr(plan, f.name), Tensor)
    }
    return replace(plan, **moved)

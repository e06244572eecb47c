"""What generators share that add points to the classes of a batch and take the hardest one of each."""

import math

import torch
from torch import Tensor

from ..utils.norms import scale_of, unit
from ..utils.validation import check_flag
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .planning import ClassPlan, on_device, plan_classes

COMPARED_VALUES = 2**24  # distances computed at a time


class HardestPointGenerator(BaseGenerator):
    """For every anchor and other class, the nearest point of the class, of its samples and of points made of its pairs.

    A subclass implements `points_of_pairs`. A class with one sample in the batch has no pairs, and is represented
    by that sample. Anchors without a positive generate nothing, and are counted: no loss that compares a negative with
    a positive could use it.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        normalize: work on directions, and call the point nearest that has the largest cosine similarity, as losses on
            normalised embeddings do; else on the embeddings as they are, by Euclidean distance.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *, normalize: bool = True, collect_stats: bool | None = None
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_flag("normalize", normalize)
        self.normalize = normalize

    def points_of_pairs(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Points made of the two embeddings of each pair.

        Args:
            first, second: (Q, D), in float32 or wider; a pair's order has no meaning.

        Returns:
            Tensors of the same shape, the points of the same pairs.
        """
        raise NotImplementedError

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Take the nearest point of each class; the metric level has no influence."""
        self.reset_stats()
        nodes = batch.nodes
        plan = on_device(plan_classes(batch.labels_on_host(), batch.num_anchors), nodes.device)
        synthetic = self._hardest(nodes, batch.num_anchors, plan) if len(plan.anchors) else nodes[:0]
        if self.collect_stats:
            self.num_negatives, self.num_skipped_anchors = len(synthetic), plan.num_skipped_anchors
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype),
            plan.labels,
            plan.anchors,
            num_skipped_anchors=plan.num_skipped_anchors,
        )

    def _hardest(self, nodes: Tensor, num_anchors: int, plan: ClassPlan) -> Tensor:
        """The point for each anchor and class of the plan: (S, D)."""
        made = self.points_of_pairs(nodes.index_select(0, plan.first), nodes.index_select(0, plan.second))
        points = torch.cat([nodes, *made])
        class_of = torch.cat([plan.class_of, plan.class_of[plan.first].repeat(len(made))])
        nearest = nearest_of_each_class(nodes[:num_anchors], points, class_of, plan.num_classes, self.normalize)
        return points.index_select(0, nearest[plan.anchors, plan.classes])


@torch.no_grad()
def nearest_of_each_class(
    anchors: Tensor, points: Tensor, class_of: Tensor, num_classes: int, normalize: bool
) -> Tensor:
    """Which point of each class is nearest to each anchor; of equally near ones the first.

    Args:
        anchors: (A, D), in float32 or wider.
        points: (T, D), likewise.
        class_of: (T,) long, in [0, ``num_classes``), each of which occurs.
        num_classes: C.
        normalize: compare by cosine similarity, else by Euclidean distance.

    Returns:
        (A, C) long.
    """
    if normalize:
        (anchors, _), (points, _) = unit(anchors), unit(points)
    else:
        scale = scale_of(points.flatten(), dim=0)
        anchors, points = anchors / scale, points / scale
    position, found = torch.arange(len(points), device=points.device), []
    for part in anchors.split(max(COMPARED_VALUES // len(points), 1)):
        if normalize:
            with torch.autocast(points.device.type, enabled=False):
                apart = -(part @ points.t())
        else:
            apart = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        column = class_of.expand_as(apart)
        least = apart.new_full((len(part), num_classes), math.inf).scatter_reduce(1, column, apart, "amin")
        # What is not finite, which is told later on a device that is not waited for, must not index out of range.
        last = len(points) - 1
        where = torch.where(apart == least.gather(1, column), position, last)
        found.append(where.new_full(least.shape, last).scatter_reduce(1, column, where, "amin"))
    return torch.cat(found)

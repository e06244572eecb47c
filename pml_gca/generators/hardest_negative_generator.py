"""The hardest real negative of each class, a control of GCA-HNG; https://arxiv.org/abs/2411.13145"""

import math

import torch
from torch import Tensor

from ..utils.norms import scale_of, unit
from ..utils.validation import check_flag
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .planning import ClassPlan, on_device, plan_classes

COMPARED_VALUES = 2**24  # distances computed at a time


class HardestNegativeGenerator(BaseGenerator):
    """The sample of each other class that is nearest to the anchor, for every anchor.

    Nothing is synthetic: in the equation of `pml_gca.generators.interpolation` this is λ = 1 and α = 0, merged by
    `"hardest"`. Of equally near samples it takes the first. Anchors without a positive generate nothing, and are
    counted: no loss that compares a negative with a positive could use it. It learns nothing. docs/evidence.md says
    with which losses it gained, with a classifier beside the loss and without.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        normalize: take the sample of the largest cosine similarity as nearest, as for losses on normalised embeddings;
            else the one of the smallest Euclidean distance.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = HardestNegativeGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    with_pairs = False  # whether points are made of pairs of samples

    def __init__(
        self, num_classes: int, embedding_size: int, *, normalize: bool = True, collect_stats: bool | None = None
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_flag("normalize", normalize)
        self.normalize = normalize

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf) -> SyntheticNegatives:
        """Take the nearest point of each class; the metric level has no influence."""
        self.reset_stats()
        nodes = batch.nodes
        plan = plan_classes(batch.labels_on_host(), batch.num_anchors, self.with_pairs)
        plan = on_device(plan, nodes.device)
        synthetic = nodes[:0]
        if len(plan.anchors):
            points, class_of = self.points_of_classes(nodes, plan)
            anchors = nodes[: batch.num_anchors]
            nearest = nearest_of_each_class(anchors, points, class_of, plan.num_classes, self.normalize)
            synthetic = points.index_select(0, nearest[plan.anchors, plan.classes])
        self.observe(num_negatives=len(synthetic), num_skipped_anchors=plan.num_skipped_anchors)
        return SyntheticNegatives(
            synthetic.to(batch.embeddings.dtype),
            plan.labels,
            plan.anchors,
            num_skipped_anchors=plan.num_skipped_anchors,
        )

    def points_of_classes(self, nodes: Tensor, plan: ClassPlan) -> tuple[Tensor, Tensor]:
        """Return the points to choose from, (T, D), and the class of each, (T,) long: here the samples themselves."""
        return nodes, plan.class_of


class HardestPointGenerator(HardestNegativeGenerator):
    """The nearest point of each other class, for every anchor: a sample, or a point made of two samples of the class.

    A subclass implements `points_of_pairs`. A class with one sample in the batch has no pairs, and is represented by
    that sample. Arguments are those of `HardestNegativeGenerator`; with `normalize` a subclass works on directions.
    """

    with_pairs = True

    def points_of_classes(self, nodes: Tensor, plan: ClassPlan) -> tuple[Tensor, Tensor]:
        """Return the samples, followed by the points made of their pairs."""
        made = self.points_of_pairs(nodes.index_select(0, plan.first), nodes.index_select(0, plan.second))
        class_of = plan.class_of[plan.first].repeat(len(made))
        return torch.cat([nodes, *made]), torch.cat([plan.class_of, class_of])

    def points_of_pairs(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return points made of the two embeddings of each pair.

        Args:
            first, second: (Q, D), in float32 or wider; a pair's order has no meaning.

        Returns:
            Tensors of the same shape, the points of the same pairs.
        """
        raise NotImplementedError


@torch.no_grad()
def nearest_of_each_class(
    anchors: Tensor, points: Tensor, class_of: Tensor, num_classes: int, normalize: bool
) -> Tensor:
    """Return which point of each class is nearest to each anchor; of equally near ones the first.

    Args:
        anchors: (A, D), in float32 or wider.
        points: (T, D), likewise.
        class_of: (T,) long, in [0, `num_classes`); each class occurs.
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
        # A GPU reports non-finite values later. Until then, they must not index out of range.
        last = len(points) - 1
        where = torch.where(apart == least.gather(1, column), position, last)
        found.append(where.new_full(least.shape, last).scatter_reduce(1, column, where, "amin"))
    return torch.cat(found)

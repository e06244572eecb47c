"""What generators share that add points to the classes of a batch and take the nearest one of each."""

import torch
from torch import Tensor

from .hardest_negative_generator import HardestNegativeGenerator
from .planning import ClassPlan


class HardestPointGenerator(HardestNegativeGenerator):
    """For every anchor and other class, the nearest point: a sample of the class, or one made of two of its samples.

    A subclass implements `points_of_pairs`. A class with one sample in the batch has no pairs, and is represented by
    that sample. Arguments are those of `HardestNegativeGenerator`; with `normalize` a subclass works on directions.
    """

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

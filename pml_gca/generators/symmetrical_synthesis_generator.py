"""Symmetrical synthesis: Gu and Ko, AAAI 2020, https://arxiv.org/abs/2001.11658"""

from torch import Tensor

from .directions import reflect
from .hardest_point_generator import HardestPointGenerator


class SymmetricalSynthesisGenerator(HardestPointGenerator):
    r"""Symmetrical synthesis: the samples of a class mirrored about each other, the hardest being the negative.

    Of each two samples p, a of a class either is mirrored about the line through 0 and the other,

    .. math:: q = 2\,(p \cdot u)\,u - p, \quad u = a / \lVert a \rVert

    which has the length of p, and the cosine similarity to a that p has. For every anchor and other class, the point
    of the class nearest to the anchor, real or synthetic, is the negative. Anchors without a positive generate nothing,
    and are counted.

    What differs from the paper: there, a class has two samples in the batch, here each pair of however many; points of
    the anchor's own class take part as anchors too, so that the hardest pair of two classes is searched for, where here
    a negative belongs to a real anchor; and the loss of the hardest pairs replaces that of the real ones, to which it
    is added here with weight 1. The paper's α and β are 2 and 1, for which its points are these.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        normalize: take the point of the largest cosine similarity as nearest; else the one of the smallest Euclidean
            distance. The points are the same.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
        >>> import torch
        >>> generator = SymmetricalSynthesisGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    def points_of_pairs(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Each pair's first embedding about the second, then the second about the first."""
        return [reflect(first, second), reflect(second, first)]

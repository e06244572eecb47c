"""Symmetrical synthesis: Gu and Ko, AAAI 2020, https://arxiv.org/abs/2001.11658"""

from torch import Tensor

from .directions import reflect
from .hardest_negative_generator import HardestPointGenerator


class SymmetricalSynthesisGenerator(HardestPointGenerator):
    r"""Symmetrical synthesis: the hardest of a class's samples and of its samples mirrored about each other.

    Each sample p of a class is mirrored about the line through 0 and each other sample a of it,

    $$q = 2\,(p \cdot u)\,u - p, \quad u = a / \lVert a \rVert$$

    which has the length of p, and its cosine similarity to a. For every anchor and other class the negative is the
    nearest point of the class, real or synthetic. Anchors without a positive generate nothing, and are counted.

    What differs from the paper: its classes have two samples in a batch; here every pair is mirrored. It also takes
    points of the anchor's class as anchors, and looks for the hardest pair of two classes. Here a negative belongs to
    a real anchor. Its loss of the hardest pairs replaces that of the real ones; here it is added, with weight 1. Its
    points are these for its α = 2 and β = 1.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        normalize: take the point of the largest cosine similarity as nearest; else the one of the smallest Euclidean
            distance. The points are the same.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = SymmetricalSynthesisGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    def points_of_pairs(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return each pair's first embedding mirrored about the second, and the second about the first."""
        return [reflect(first, second), reflect(second, first)]

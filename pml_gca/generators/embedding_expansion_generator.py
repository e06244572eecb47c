"""Embedding expansion: Ko and Gu, CVPR 2020, https://arxiv.org/abs/2003.02546"""

from torch import Tensor

from ..utils.validation import check_positive_int
from .directions import mix
from .hardest_negative_generator import HardestPointGenerator


class EmbeddingExpansionGenerator(HardestPointGenerator):
    r"""Embedding expansion: the hardest of a class's samples and of the points that divide the segments between them.

    Between each two samples x, x' of a class lie n points at equal distances,

    $$v_k = \frac{k\,x' + (n + 1 - k)\,x}{n + 1}, \quad k = 1, \dots, n$$

    For every anchor and other class the negative is the nearest point of the class, real or synthetic. Anchors without
    a positive generate nothing, and are counted.

    With `normalize`, embeddings and points have unit length, as in the paper. Points are then scaled to the length
    (k ‖x'‖ + (n + 1 − k) ‖x‖) / (n + 1), the mean of the pair's lengths, weighted like their directions. For unit
    embeddings these are the paper's points, and a loss on normalised embeddings sees no difference. A loss on
    embeddings as they are, such as N-pairs with dot products, gets negatives of the scale of its anchors.

    What differs from the paper: it also takes points of the anchor's class as anchors, and looks for the hardest pair
    of two classes. Here a negative belongs to a real anchor. The paper's loss of the hardest pairs replaces that of the
    real ones; here it is added, with weight 1.

    The number of points of a class grows with the square of its samples in the batch.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        num_points: n, points between two samples.
        normalize: as above; else points are means of the embeddings as they are, and nearest is by Euclidean distance.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = EmbeddingExpansionGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_points: int = 2,
        normalize: bool = True,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, normalize=normalize, collect_stats=collect_stats)
        check_positive_int("num_points", num_points)
        self.num_points = num_points

    def points_of_pairs(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return the n points between the two embeddings of each pair, by k."""
        parts = self.num_points + 1
        shares = (first.new_full((1, 1), k / parts) for k in range(1, parts))
        return [mix(second, first, share, self.normalize) for share in shares]

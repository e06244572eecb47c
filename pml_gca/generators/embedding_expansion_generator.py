"""Embedding expansion: Ko and Gu, CVPR 2020, https://arxiv.org/abs/2003.02546"""

from torch import Tensor

from ..utils.validation import check_positive_int
from .directions import mix
from .hardest_point_generator import HardestPointGenerator


class EmbeddingExpansionGenerator(HardestPointGenerator):
    r"""Embedding expansion: points that divide the segments within a class, and the hardest of them as the negative.

    Between each two samples x, x' of a class n points are set at equal distances,

    .. math:: v_k = \frac{k\,x' + (n + 1 - k)\,x}{n + 1}, \quad k = 1, \dots, n

    and for every anchor and other class, the point of the class nearest to the anchor, real or synthetic, is the
    negative. Anchors without a positive generate nothing, and are counted.

    With ``normalize`` the embeddings are brought to unit length first, and the points again, as in the paper. They are
    then scaled to the length (k ‖x'‖ + (n + 1 − k) ‖x‖) / (n + 1), the mean of the pair's lengths, weighted like their
    directions. Of unit embeddings this makes the paper's points; a loss on normalised embeddings sees no difference;
    and one on embeddings as they are, such as N-pairs with dot products, meets negatives of the scale of its anchors.

    What differs from the paper: there, points of the anchor's own class take part as anchors too, so that the hardest
    pair of two classes is searched for; here a negative belongs to a real anchor. There, the loss of the hardest pairs
    replaces that of the real ones; here it is added, with weight 1.

    The points of a class grow with the square of its samples in the batch.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        num_points: n, points between two samples.
        normalize: as above; else points are means of the embeddings as they are, and Euclidean distance says which is
            nearest.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Example:
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
        """The n points between the two embeddings of each pair, by k."""
        parts = self.num_points + 1
        shares = (first.new_full((1, 1), k / parts) for k in range(1, parts))
        return [mix(second, first, share, self.normalize) for share in shares]

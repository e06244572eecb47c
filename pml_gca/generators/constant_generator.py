"""A control of GCA-HNG: one coefficient for all; https://arxiv.org/abs/2411.13145"""

from torch import Tensor

from ..correlation.correlations import Correlations
from ..utils.validation import check_share
from .interpolation_generator import InterpolationGenerator


class ConstantGenerator(InterpolationGenerator):
    """GCA-HNG without a graph: all coefficients λ are one constant.

    Interpolation, merging and the strength e^{-α/L} are those of GCA-HNG: a comparison tells what learned coefficients
    add. It learns nothing and has no objective. Put it into `ClassifiedGenerator` for a node classification. Anchors
    without a positive generate nothing, and are counted.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        coefficient: λ in [0, 1]. With 1 and `alpha=0` real negatives are merged as they are; with 0 they are pulled
            as near to the anchor as its positive.
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        merging: how the candidates of a class become one negative: `"random"`, `"mean"` or `"hardest"`, as for
            `GlobalCorrelationGenerator`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = ConstantGenerator(num_classes=10, embedding_size=8, coefficient=0.3)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        coefficient: float = 0.5,
        alpha: float = 5.0,
        merging: str = "random",
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, alpha=alpha, merging=merging, collect_stats=collect_stats)
        check_share("coefficient", coefficient)
        self.coefficient = float(coefficient)

    def coefficients_of_edges(self, num_edges: int, nodes: Tensor, graph: Correlations | None) -> Tensor:
        """Return the constant, which takes the memory of one value."""
        return nodes.new_full((1, 1), self.coefficient).expand(num_edges, self.embedding_size)

"""A control of GCA-HNG: coefficients drawn at random; https://arxiv.org/abs/2411.13145"""

import torch
from torch import Tensor

from ..correlation.correlations import Correlations
from ..utils.validation import check_share
from .interpolation_generator import InterpolationGenerator


class RandomGenerator(InterpolationGenerator):
    """GCA-HNG without a graph: each coefficient λ is 1 or 0, drawn again for every batch.

    A channel of a negative stays where it is (but for the strength e^{-α/L}), or is pulled in as far as the anchor's
    positive. Channels and unordered pairs of samples are drawn independently: a pair has one λ for both directions, as
    an edge of GCA-HNG has. All else is as in `ConstantGenerator`.

    Args:
        num_classes: training classes N.
        embedding_size: channels D.
        probability: of λ = 1, in [0, 1].
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        merging: how the candidates of a class become one negative: `"random"`, `"mean"` or `"hardest"`, as for
            `GlobalCorrelationGenerator`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Examples:
        >>> import torch
        >>> generator = RandomGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        probability: float = 0.5,
        alpha: float = 5.0,
        merging: str = "random",
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, alpha=alpha, merging=merging, collect_stats=collect_stats)
        check_share("probability", probability)
        self.probability = float(probability)

    def coefficients_of_edges(self, num_edges: int, nodes: Tensor, graph: Correlations | None) -> Tensor:
        """Return new draws, a byte each."""
        drawn = torch.empty(num_edges, self.embedding_size, dtype=torch.bool, device=nodes.device)
        return drawn.bernoulli_(self.probability)

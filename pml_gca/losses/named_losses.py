"""PML losses with the settings of retrieval papers, by name."""

from collections.abc import Callable

from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import nn

from ..utils.validation import Named


def n_pairs(num_classes: int, embedding_size: int) -> losses.NPairsLoss:
    """Return PML's N-pairs on unnormalised embeddings, with the paper's length penalty for 2 per class."""
    return losses.NPairsLoss(
        distance=DotProductSimilarity(normalize_embeddings=False),
        embedding_regularizer=LpRegularizer(power=2),
        embedding_reg_weight=1.5e-3,
    )


NAMED_LOSSES: Named[Callable[[int, int], nn.Module]] = Named(
    {
        "n_pairs": n_pairs,
        "contrastive": lambda num_classes, size: losses.ContrastiveLoss(),
        "triplet": lambda num_classes, size: losses.TripletMarginLoss(),
        "multi_similarity": lambda num_classes, size: losses.MultiSimilarityLoss(),
        "circle": lambda num_classes, size: losses.CircleLoss(),
        "supcon": lambda num_classes, size: losses.SupConLoss(),
        "proxy_anchor": lambda num_classes, size: losses.ProxyAnchorLoss(num_classes, size),
        "arcface": lambda num_classes, size: losses.ArcFaceLoss(num_classes, size),
    }
)
"""Functions of `num_classes` and `embedding_size`; PML's defaults where the paper says nothing."""

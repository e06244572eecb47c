"""PML losses with the settings of retrieval papers, by name."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.regularizers import LpRegularizer
from torch import nn

from ..utils.validation import Named, check_positive_int


class NamedLoss(Protocol):
    """A function that makes a loss for N training classes and embeddings of D channels."""

    def __call__(self, num_classes: int, embedding_size: int) -> nn.Module: ...


def n_pairs() -> losses.NPairsLoss:
    """Return PML's N-pairs on unnormalised embeddings, with the paper's length penalty for 2 per class."""
    return losses.NPairsLoss(
        distance=DotProductSimilarity(normalize_embeddings=False),
        embedding_regularizer=LpRegularizer(power=2),
        embedding_reg_weight=1.5e-3,
    )


def of_sizes(make: Callable[..., nn.Module], needs_sizes: bool = False) -> NamedLoss:
    """Return a function of `num_classes` and `embedding_size`, of which only losses with parameters make use.

    It raises TypeError or ValueError if a size is no positive integer, whether it is used or not.
    """

    def named_loss(num_classes: int, embedding_size: int) -> nn.Module:
        check_positive_int("num_classes", num_classes)
        check_positive_int("embedding_size", embedding_size)
        return make(num_classes, embedding_size) if needs_sizes else make()

    return named_loss


NAMED_LOSSES: Named[NamedLoss] = Named(
    {
        "n_pairs": of_sizes(n_pairs),
        "contrastive": of_sizes(losses.ContrastiveLoss),
        "triplet": of_sizes(losses.TripletMarginLoss),
        "multi_similarity": of_sizes(losses.MultiSimilarityLoss),
        "circle": of_sizes(losses.CircleLoss),
        "supcon": of_sizes(losses.SupConLoss),
        "proxy_anchor": of_sizes(losses.ProxyAnchorLoss, needs_sizes=True),
        "arcface": of_sizes(losses.ArcFaceLoss, needs_sizes=True),
        "nt_xent": of_sizes(partial(losses.NTXentLoss, temperature=0.1)),
    }
)
"""Functions of `num_classes` and `embedding_size`; PML's defaults where the paper says nothing."""

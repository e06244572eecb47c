"""Losses that learn from generated hard negatives."""

from .families import SyntheticBatch, check_loss, synthetic_loss
from .hard_negative_generation_loss import HardNegativeGenerationLoss
from .named import NAMED_LOSSES
from .published_n_pairs_loss import PublishedNPairsLoss

__all__ = [
    "NAMED_LOSSES",
    "HardNegativeGenerationLoss",
    "PublishedNPairsLoss",
    "SyntheticBatch",
    "check_loss",
    "synthetic_loss",
]

"""Losses that learn from generated hard negatives."""

from .accepted import check_loss
from .families import SyntheticBatch, synthetic_loss
from .hard_negative_generation_loss import HardNegativeGenerationLoss
from .named import NAMED_LOSSES
from .pml_wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = [
    "NAMED_LOSSES",
    "CrossBatchMemory",
    "HardNegativeGenerationLoss",
    "SelfSupervisedLoss",
    "SyntheticBatch",
    "check_loss",
    "synthetic_loss",
]

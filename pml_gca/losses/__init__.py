"""Losses that learn from generated hard negatives."""

from .families import SyntheticBatch, synthetic_loss
from .hard_negative_generation_loss import HardNegativeGenerationLoss
from .named_losses import NAMED_LOSSES
from .pml_wrappers import CrossBatchMemory, SelfSupervisedLoss
from .supported import check_supported_loss

__all__ = [
    "NAMED_LOSSES",
    "CrossBatchMemory",
    "HardNegativeGenerationLoss",
    "SelfSupervisedLoss",
    "SyntheticBatch",
    "check_supported_loss",
    "synthetic_loss",
]

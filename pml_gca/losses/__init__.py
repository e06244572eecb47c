"""Losses that learn from generated hard negatives."""

from .hard_negative_generation_loss import HardNegativeGenerationLoss
from .synthetic_loss import SyntheticBatch, check_loss, synthetic_loss

__all__ = ["HardNegativeGenerationLoss", "SyntheticBatch", "check_loss", "synthetic_loss"]

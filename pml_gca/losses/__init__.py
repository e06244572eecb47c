"""Losses that learn from generated hard negatives."""

from .families import SyntheticBatch, check_loss, synthetic_loss
from .hard_negative_generation_loss import HardNegativeGenerationLoss

__all__ = ["HardNegativeGenerationLoss", "SyntheticBatch", "check_loss", "synthetic_loss"]

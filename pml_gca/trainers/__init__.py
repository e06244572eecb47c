"""PML trainers extended for the protocol of the paper."""

from .alternating_trainer import AlternatingTrainer
from .autocast_trainer import AutocastTrainer

__all__ = ["AlternatingTrainer", "AutocastTrainer"]

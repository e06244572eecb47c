"""PML trainers with the paper's schedule and mixed precision, and what they show."""

from .alternating_trainer import AlternatingTrainer
from .autocast_trainer import AutocastTrainer
from .loss_line import LossLine

__all__ = ["AlternatingTrainer", "AutocastTrainer", "LossLine"]

"""PML trainers with the paper's schedule and mixed precision."""

from .alternating_trainer import AlternatingTrainer
from .autocast_trainer import AutocastTrainer

__all__ = ["AlternatingTrainer", "AutocastTrainer"]

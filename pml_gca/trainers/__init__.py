"""Trainers of PML with what the paper's protocol needs beyond them."""

from .alternating_trainer import AlternatingTrainer
from .autocast_trainer import AutocastTrainer

__all__ = ["AlternatingTrainer", "AutocastTrainer"]

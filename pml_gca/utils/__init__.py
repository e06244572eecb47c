"""What PML lacks for retrieval papers' protocols, and small helpers."""

from . import runs
from .recall_calculator import RecallCalculator

__all__ = ["RecallCalculator", "runs"]

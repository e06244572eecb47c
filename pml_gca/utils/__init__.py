"""What PML lacks for retrieval papers' protocols, and small helpers."""

from . import command_line, records, runs, tables
from .recall_calculator import RecallCalculator
from .training_run import TrainingRun

__all__ = ["RecallCalculator", "TrainingRun", "command_line", "records", "runs", "tables"]

"""`RecallCalculator` for PML's testers, resumable training runs, and helpers that other subpackages share."""

from . import command_line, records, runs, tables
from .recall_calculator import RecallCalculator
from .runs import TrainingRun

__all__ = ["RecallCalculator", "TrainingRun", "command_line", "records", "runs", "tables"]

"""`RecallCalculator` for PML's testers, resumable training runs, and helpers that other subpackages share."""

from typing import TYPE_CHECKING

from .lazy import lazy_attributes

if TYPE_CHECKING:
    from . import command_line, records, runs, tables
    from .recall_calculator import RecallCalculator
    from .runs import TrainingRun

__all__ = ["RecallCalculator", "TrainingRun", "command_line", "records", "runs", "tables"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "RecallCalculator": "recall_calculator",
        "TrainingRun": "runs",
        **{name: name for name in ("command_line", "records", "runs", "tables")},
    },
)

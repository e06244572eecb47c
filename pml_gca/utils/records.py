"""Set up PML's record keeping, and keep it fast."""

from collections import UserDict
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn


class UnrecordedModules(UserDict[str, Any]):
    """Child modules that record-keeper does not visit.

    PML's `HookContainer` passes every loss to record-keeper. That visits all attributes that are modules or dicts, and
    turns each tensor into a Python list and each child's name into a table name. For a network this is slow and
    large, and SQLite refuses a child named "0". Record-keeper ignores mappings that are not dicts, like this one.
    """


class UnrecordedValues(UserDict[str, Any]):
    """Values by name that record-keeper does not visit, as no `UnrecordedModules`."""


def hide_modules_from_records(module: nn.Module) -> None:
    """Hide the current children of `module` from record-keeper; for PyTorch nothing changes."""
    module.__dict__["_modules"] = UnrecordedModules(module._modules)


def build_hooks(folder: str | Path) -> Any:
    """Return PML's hook container, which records a run for record-keeper and TensorBoard.

    Args:
        folder: gets the subfolders `logs` and `tensorboard`.

    Raises:
        ImportError: record-keeper or TensorBoard is missing.
    """
    from pytorch_metric_learning.utils import logging_presets

    for module in ("record_keeper", "torch.utils.tensorboard"):  # without one, PML silently records nothing
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(
                f"records of the run need {module}, which fails to load ({error}): pip install 'pml-gca[examples]'"
            ) from error
    logs, tensorboard = (str(Path(folder) / name) for name in ("logs", "tensorboard"))
    records, _, _ = logging_presets.get_record_keeper(logs, tensorboard)
    return logging_presets.get_hook_container(records, primary_metric="recall_at_1")

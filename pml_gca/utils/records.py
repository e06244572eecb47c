"""Keeping PML's record keeping fast and working."""

from collections import UserDict
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn


class UnrecordedModules(UserDict[str, Any]):
    """Child modules that record-keeper does not walk into.

    PML's ``HookContainer`` hands every loss to record-keeper, which follows all attributes that are modules or
    dicts, turns each tensor it meets into a Python list, and each child's name into a table name. For a network that
    is slow, large, and refused by SQLite where a child is called "0". A mapping that is no dict is left alone.
    """


def hide_modules_from_records(module: nn.Module) -> None:
    """Hide the children that ``module`` has now from record-keeper; for PyTorch nothing changes."""
    module.__dict__["_modules"] = UnrecordedModules(module._modules)


def build_hooks(folder: Path) -> Any:
    """Return PML's hook container, which records a run for record-keeper and TensorBoard.

    Args:
        folder: gets the subfolders ``logs`` and ``tensorboard``.

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
    records, _, _ = logging_presets.get_record_keeper(str(folder / "logs"), str(folder / "tensorboard"))
    return logging_presets.get_hook_container(records, primary_metric="recall_at_1")

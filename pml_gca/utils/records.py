"""Keeping PML's record keeping fast and working."""

from collections import UserDict
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

"""Packages that only parts of pml-gca need, imported when they are needed."""

from importlib import import_module
from types import ModuleType

import torch

_TORCHVISION = f"torchvision's version must match the installed torch {torch.__version__}"


def import_torchvision() -> ModuleType:
    """torchvision. ImportError if it is missing, or made for another torch."""
    return _import("torchvision", _TORCHVISION)


def import_timm() -> ModuleType:
    """timm. ImportError if it is missing, or the torchvision that it needs does not work."""
    return _import("timm", f"timm needs torchvision, and {_TORCHVISION}")


def import_pillow() -> ModuleType:
    """``PIL.Image``. ImportError if it is missing."""
    return _import("PIL.Image", "pillow comes with torchvision")


def _import(name: str, note: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:  # a torchvision made for another torch fails with a RuntimeError, among others
        raise ImportError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); "
            f"install it with: pip install 'pml-gca[images]' ({note})",
            name=name,
        ) from error

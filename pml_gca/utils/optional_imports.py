"""Import packages that only parts of pml-gca need."""

from importlib import import_module
from types import ModuleType

import torch

_TORCHVISION = f"torchvision's version must match the installed torch {torch.__version__}"


def import_torchvision() -> ModuleType:
    """Return torchvision. Raise ImportError if it is missing, or built for another torch."""
    return _import("torchvision", _TORCHVISION)


def import_timm() -> ModuleType:
    """Return timm. Raise ImportError if it is missing, or the torchvision that it needs does not work."""
    return _import("timm", f"timm needs torchvision, and {_TORCHVISION}")


def import_pillow() -> ModuleType:
    """Return `PIL.Image`. Raise ImportError if it is missing."""
    return _import("PIL.Image", "pillow comes with torchvision")


def _import(name: str, note: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:  # a torchvision built for another torch may fail with a RuntimeError
        raise ImportError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); "
            f"install it with: pip install 'pml-gca[images]' ({note})",
            name=name,
        ) from error

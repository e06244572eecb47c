"""Data sets of (image, label) pairs with class-disjoint train, val and test splits."""

from typing import TYPE_CHECKING, Any

from ..utils.optional_imports import import_pillow
from .affine import AffineRange
from .benchmarks import Benchmark, load_benchmark
from .class_folder import ClassFolder
from .class_subset import ClassSubset, UnreadableImageError, check_queries, small_classes
from .glyphs import Glyphs
from .transforms import InputConfig

if TYPE_CHECKING:
    from .in_shop import InShop

__all__ = [
    "AffineRange",
    "Benchmark",
    "ClassFolder",
    "ClassSubset",
    "Glyphs",
    "InShop",
    "InputConfig",
    "UnreadableImageError",
    "check_queries",
    "load_benchmark",
    "small_classes",
]


def __getattr__(name: str) -> Any:
    if name != "InShop":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_pillow()  # PML's data sets import it when they are imported, which not everyone needs
    from .in_shop import InShop

    return InShop

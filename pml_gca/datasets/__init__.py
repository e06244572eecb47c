"""Data sets of (image, label) pairs with class-disjoint train, val and test splits."""

from .affine import AffineRange
from .glyphs import Glyphs
from .image_folder import ClassFolder

__all__ = ["AffineRange", "ClassFolder", "Glyphs"]

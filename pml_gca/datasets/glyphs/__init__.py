"""Characters in the fonts of matplotlib, as images: a data set that needs no download."""

from .dataset import Glyphs

__all__ = ["Glyphs"]

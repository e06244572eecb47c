"""Characters in the fonts of matplotlib, as images: a data set without a download."""

from .glyphs import Glyphs

__all__ = ["Glyphs"]

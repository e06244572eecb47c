"""Figures at the end of a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def try_to_save(path: Path, draw: Callable[[], "Figure"]) -> bool:
    """Draw a figure and save it; where that fails, say why on stderr, as no figure is worth a run.

    Args:
        path: the file, whose ending says its format.
        draw: makes the figure.

    Returns:
        Whether it was saved.
    """
    try:
        draw().savefig(path, dpi=150)
    except Exception as error:  # of matplotlib, its fonts, the disk, or what is drawn
        print(f"{path} could not be drawn ({type(error).__name__}: {error}); results are not affected", file=sys.stderr)
        return False
    return True

"""Shared parts of all figures: the import of matplotlib, colours, text that fits, legends and saving."""

import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: colour-blind readers can tell them apart, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DARK = "#333333"


def import_matplotlib() -> ModuleType:
    """Return matplotlib with the modules that figures need.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
        import matplotlib.lines
        import matplotlib.patches
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pml-gca[examples]'") from error
    return matplotlib


def try_to_save(path: Path, draw: Callable[[], "Figure"]) -> bool:
    """Draw a figure and save it. If that fails, print the reason on stderr: a figure must not end a run.

    Args:
        path: the file. Its ending gives the format.
        draw: makes the figure.

    Returns:
        Whether it was saved.
    """
    try:
        figure = draw()
        with warnings.catch_warnings():  # of characters that no font has; `any_script` told it
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=150)
    except Exception as error:  # from matplotlib, its fonts, the disk, or the data
        print(f"{path} could not be drawn ({type(error).__name__}: {error}); results are not affected", file=sys.stderr)
        return False
    return True


def wrap(figure: "Figure", text: str, inches: float, fontsize: float) -> str:
    """Break the text into lines of at most this width, if single characters fit. Its own line breaks stay."""
    artist = figure.text(0, 0, "", fontsize=fontsize)
    lines = []
    for line in text.splitlines():
        filled, size = line.strip(), len(line)
        while size > 1:
            artist.set_text(filled)
            width = artist.get_window_extent().width / figure.dpi
            if width <= inches:
                break
            size = max(1, min(size - 1, int(size * inches / width)))
            filled = textwrap.fill(line, size)
        lines.append(filled)
    artist.remove()
    return "\n".join(lines)


def add_title(figure: "Figure", title: str | None) -> None:
    """Write the title, if there is one, above all axes, in lines that fit the figure's width."""
    if title:
        figure.suptitle(wrap(figure, title, figure.get_figwidth() - 0.3, 12), fontsize=12)


def grid(count: int, most: int) -> tuple[int, int]:
    """Return rows and columns, at most `most`, for this many panels, with rows filled as evenly as possible."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def legend_below(figure: "Figure", handles: Sequence[Any]) -> None:
    """Add a legend below all axes, in as few rows as the figure's width allows. Long labels are wrapped."""
    for handle in handles:
        handle.set_label(wrap(figure, handle.get_label(), min(3.6, figure.get_figwidth() - 0.8), 9))
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, columnspacing=1.6
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()

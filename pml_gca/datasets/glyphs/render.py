"""Drawing of characters in the fonts that ship with matplotlib."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .look_alikes import GRID, group_roots, look_alikes

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""The faces, by file name without `.ttf`."""

MIN_FACES = 14
"""A character is a class if at least this many faces draw it."""

EM = 128
"""Pixels per em at which characters are drawn, before they are scaled to the image."""

MARGIN = 1 / 16
"""Empty border on each side of a scaled glyph, as a fraction of the image's side."""

Pixels = NDArray[np.uint8]


class Rendering(NamedTuple):
    """All glyphs: `images` (N, S, S) uint8, `labels` and `faces` (N,) int64, `codes` (K,) int64.

    `labels` index `codes` (the classes' code points, ascending) and `faces` index `FACES`;
    images are ordered by class, then by face.
    """

    images: Pixels
    labels: NDArray[np.int64]
    faces: NDArray[np.int64]
    codes: NDArray[np.int64]


def import_font_packages() -> tuple[Any, Any]:
    """Return matplotlib and PIL, or raise an ImportError that names the extra they come with."""
    try:
        import matplotlib
        import PIL
    except ImportError as error:
        raise ImportError(
            f"the glyph data set needs matplotlib (for its fonts) and pillow, and {error.name} is missing; "
            "install them with: pip install 'pml-gca[examples]'"
        ) from error
    return matplotlib, PIL


def font_paths() -> list[Path]:
    """Return the files of `FACES`, in that order. Raise FileNotFoundError if this matplotlib lacks one."""
    matplotlib, _ = import_font_packages()
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{face}.ttf" for face in FACES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"matplotlib's font folder {folder} lacks {missing}; all of {FACES} are needed")
    return paths


def covered_codes(paths: Sequence[Path]) -> tuple[list[int], list[set[int]]]:
    """Return the code points in at least `MIN_FACES` files, and the set of code points of each file.

    Only letters, numbers, punctuation and symbols count. Combining marks do not: scaled up alone, they are mere dots
    and strokes.
    """
    from matplotlib.ft2font import FT2Font

    maps = [set(FT2Font(str(path)).get_charmap()) for path in paths]
    codes = sorted(c for c in set().union(*maps) if sum(c in m for m in maps) >= MIN_FACES)
    return [c for c in codes if unicodedata.category(chr(c))[0] in "LNPS"], maps


def draw_ink(font: Any, character: str) -> Any | None:
    """Return a character as a grey PIL image cropped to its ink (light on dark), None if it has no ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font)
    box = canvas.getbbox()
    return None if box is None else canvas.crop(box)


def fit(ink: Any, size: int, margin: int) -> Pixels:
    """Return `ink` scaled to fill a (size, size) image up to `margin` pixels, with its aspect ratio kept."""
    from PIL import Image

    factor = (size - 2 * margin) / max(ink.size)
    width, height = (max(1, round(side * factor)) for side in ink.size)
    frame = Image.new("L", (size, size))
    frame.paste(ink.resize((width, height), Image.Resampling.BOX), ((size - width) // 2, (size - height) // 2))
    return np.asarray(frame)


def stretch(ink: Any, size: int) -> Pixels:
    """Return `ink` stretched to (size, size)."""
    from PIL import Image

    return np.asarray(ink.resize((size, size), Image.Resampling.BOX))


def render_glyphs(image_size: int, progress: Callable[[Iterable[Path]], Iterable[Path]] | None = None) -> Rendering:
    """Draw every covered character in every face, without look-alikes. It takes a few seconds on one core.

    Args:
        image_size: side S of the images, in pixels.
        progress: wraps the iteration over the font files, for a progress bar.
    """
    from PIL import ImageFont

    paths = font_paths()
    codes, maps = covered_codes(paths)
    shape = (len(codes), len(paths))
    drawn = np.zeros(shape, bool)
    boxes = np.zeros((*shape, 2))
    images = np.zeros((*shape, image_size, image_size), np.uint8)
    shapes = np.zeros((*shape, GRID, GRID), bool)
    margin = max(1, round(image_size * MARGIN))
    wrapped: Iterator[Path] = iter(paths if progress is None else progress(paths))
    for face, path in enumerate(wrapped):
        font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)
        for i, code in enumerate(codes):
            ink = draw_ink(font, chr(code)) if code in maps[face] else None
            if ink is None:
                continue
            drawn[i, face] = True
            boxes[i, face] = np.array(ink.size) / max(ink.size)
            images[i, face] = fit(ink, image_size, margin)
            shapes[i, face] = stretch(ink, GRID) >= 128
    enough = np.flatnonzero(drawn.sum(1) >= MIN_FACES)
    alike = look_alikes(shapes[enough], boxes[enough], drawn[enough])
    kept = enough[[root == i for i, root in enumerate(group_roots(alike))]]
    label, face_index = np.nonzero(drawn[kept])
    return Rendering(images[kept][label, face_index], label, face_index, np.array(codes, np.int64)[kept])

"""Drawing characters from the fonts that ship with matplotlib, and merging those that look alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""The faces drawn from, by file name without ``.ttf``."""

MIN_FACES = 14
"""A character counts if at least this many faces draw ink for it."""

EM = 128
"""Pixels per em that characters are drawn at before they are scaled to the image."""

MARGIN = 1 / 16
"""Empty border on each side of a scaled glyph, as a fraction of the image's side."""

GRID = 32
"""Side of the raster, in pixels, that glyphs are stretched to when two characters are compared."""

REACH = 1
"""Ink counts as shared if the other glyph has ink within this many pixels of the raster."""

MAX_STRAY = 0.005
"""Two glyphs of one face look alike if less than this share of their ink is not shared ..."""

MAX_BOX_CHANGE = 0.2
"""... and width and height of their scaled ink boxes differ by less than this, in sum, in image sides.

Two characters look alike if their glyphs do in at least half of the faces that draw both.
"""

Pixels = NDArray[np.uint8]
Bools = NDArray[np.bool_]


class Rendering(NamedTuple):
    """All glyphs: ``images`` (N, S, S) uint8, ``labels`` and ``faces`` (N,) int64, ``codes`` (K,) int64.

    ``labels`` index ``codes`` (the classes' code points, ascending) and ``faces`` index :data:`FACES`;
    images are ordered by class, then by face.
    """

    images: Pixels
    labels: NDArray[np.int64]
    faces: NDArray[np.int64]
    codes: NDArray[np.int64]


def import_extra() -> tuple[Any, Any]:
    """matplotlib and PIL, or an ImportError that names the extra they come with."""
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
    """Files of :data:`FACES`, in that order. FileNotFoundError if this matplotlib ships without one."""
    matplotlib, _ = import_extra()
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{face}.ttf" for face in FACES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"matplotlib's font folder {folder} lacks {missing}; all of {FACES} are needed")
    return paths


def covered_codes(paths: Sequence[Path]) -> tuple[list[int], list[set[int]]]:
    """Code points of letters, numbers, punctuation and symbols in >= MIN_FACES files; and each file's own.

    Marks that combine with another character are left out: scaled up alone, they are dots and strokes.
    """
    from matplotlib.ft2font import FT2Font

    maps = [set(FT2Font(str(path)).get_charmap()) for path in paths]
    codes = sorted(c for c in set().union(*maps) if sum(c in m for m in maps) >= MIN_FACES)
    return [c for c in codes if unicodedata.category(chr(c))[0] in "LNPS"], maps


def draw_ink(font: Any, character: str) -> Any | None:
    """One character as a grey PIL image cropped to its ink (light on dark), None if it has none."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font)
    box = canvas.getbbox()
    return None if box is None else canvas.crop(box)


def fit(ink: Any, size: int, margin: int) -> Pixels:
    """``ink`` scaled, keeping its aspect ratio, to fill a (size, size) image but for ``margin`` pixels."""
    from PIL import Image

    factor = (size - 2 * margin) / max(ink.size)
    width, height = (max(1, round(side * factor)) for side in ink.size)
    frame = Image.new("L", (size, size))
    frame.paste(ink.resize((width, height), Image.Resampling.BOX), ((size - width) // 2, (size - height) // 2))
    return np.asarray(frame)


def stretch(ink: Any, size: int) -> Pixels:
    """``ink`` scaled to (size, size), each axis on its own."""
    from PIL import Image

    return np.asarray(ink.resize((size, size), Image.Resampling.BOX))


def dilate(shapes: Bools, reach: int) -> Bools:
    """(N, G, G) shapes grown by ``reach`` pixels along both axes (a square neighbourhood)."""
    for axis in (1, 2):
        grown = shapes.copy()
        for step in range(1, reach + 1):
            low = [slice(None)] * 3
            high = [slice(None)] * 3
            low[axis], high[axis] = slice(None, -step), slice(step, None)
            grown[tuple(low)] |= shapes[tuple(high)]
            grown[tuple(high)] |= shapes[tuple(low)]
        shapes = grown
    return shapes


def stray_ink(shapes: Bools, reach: int = REACH) -> NDArray[np.float64]:
    """(N, N) share of two shapes' ink that lies farther than ``reach`` pixels from the other's ink.

    0 for shapes that agree up to the tolerance, 1 for shapes far apart. ``shapes`` is (N, G, G).
    """
    ink = shapes.reshape(len(shapes), -1).astype(np.float32)
    near = dilate(shapes, reach).reshape(len(shapes), -1).astype(np.float32)
    total = ink.sum(1)
    stray = total[:, None] - ink @ near.T  # whole numbers below 2**24: exact, whatever the order of the sum
    return (stray + stray.T).astype(np.float64) / np.maximum(total[:, None] + total, 1.0)


def group_roots(alike: Bools) -> list[int]:
    """For each of N things the lowest index in its group; groups are chains of pairs in ``alike`` (N, N)."""
    roots = list(range(len(alike)))

    def find(i: int) -> int:
        while roots[i] != i:
            i = roots[i]
        return i

    for i, j in np.argwhere(alike):
        a, b = find(int(i)), find(int(j))
        roots[max(a, b)] = min(a, b)
    return [find(i) for i in range(len(alike))]


def look_alikes(shapes: Bools, boxes: NDArray[np.float64], drawn: Bools) -> Bools:
    """(C, C) which characters look alike; see `Glyphs` for the rule.

    Args:
        shapes: (C, F, G, G) ink of C characters in F faces, each stretched to the whole raster.
        boxes: (C, F, 2) width and height of the ink, as fractions of the longer one.
        drawn: (C, F) which faces draw the character.
    """
    count, n_faces = drawn.shape
    alike, shared = np.zeros((count, count), int), np.zeros((count, count), int)
    for face in range(n_faces):
        both = drawn[:, None, face] & drawn[None, :, face]
        box = boxes[:, face]
        change = np.abs(box[:, None] - box[None]).sum(-1)
        alike += both & (change < MAX_BOX_CHANGE) & (stray_ink(shapes[:, face]) < MAX_STRAY)
        shared += both
    return (2 * alike >= shared) & (shared > 0)


def render_glyphs(image_size: int, progress: Callable[[Iterable[Path]], Iterable[Path]] | None = None) -> Rendering:
    """Draw every covered character in every face and drop look-alikes; a few seconds of one core.

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

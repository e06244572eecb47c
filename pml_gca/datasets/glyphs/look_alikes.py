"""Detection of characters that look alike once scaled to the same frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID = 32
"""Side, in pixels, of the raster on which characters are compared. Glyphs are stretched to fill it."""

REACH = 1
"""Ink counts as shared if the other glyph has ink within this many pixels of the raster."""

MAX_STRAY = 0.005
"""Two glyphs of one face look alike if less than this share of their ink is not shared ..."""

MAX_BOX_CHANGE = 0.2
"""... and their scaled ink boxes differ in width and height by less than this in total, in image sides.

Two characters look alike if their glyphs do in at least half of the faces that draw both.
"""

Bools = NDArray[np.bool_]


def dilate(shapes: Bools, reach: int) -> Bools:
    """Return (N, G, G) shapes grown by `reach` pixels along both axes (a square neighbourhood)."""
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
    """Return the share of two shapes' ink that lies farther than `reach` pixels from the other's ink.

    The result is (N, N) for `shapes` (N, G, G): 0 for shapes that agree up to the tolerance, 1 for shapes far apart.
    """
    ink = shapes.reshape(len(shapes), -1).astype(np.float32)
    near = dilate(shapes, reach).reshape(len(shapes), -1).astype(np.float32)
    total = ink.sum(1)
    stray = total[:, None] - ink @ near.T  # whole numbers below 2**24: exact in any order of summation
    return (stray + stray.T).astype(np.float64) / np.maximum(total[:, None] + total, 1.0)


def group_roots(alike: Bools) -> list[int]:
    """Return the lowest index in the group of each of N items. Groups are chains of pairs in `alike` (N, N)."""
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
    """Return which characters look alike, shape (C, C). `Glyphs` gives the rule.

    Args:
        shapes: (C, F, G, G) ink of C characters in F faces, each stretched to the whole raster.
        boxes: (C, F, 2) width and height of the ink, as fractions of the longer side.
        drawn: (C, F) whether the face draws the character.
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

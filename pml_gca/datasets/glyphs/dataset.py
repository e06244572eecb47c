"""`Glyphs`: characters in many typefaces, an image-retrieval data set that needs no download."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ...utils.validation import check_flag, check_int
from ..affine import AffineRange, check_augment, check_range, draw_affines, to_unit, warp, warp_fixed
from ..splits import check_split, split_classes
from .cache import cache_path, load_rendering, store_rendering
from .render import EM, FACES, Rendering, render_glyphs


def _progress_bar(paths: Iterable[Path]) -> Iterable[Path]:
    return tqdm(paths, desc="drawing glyphs", unit="face")


def load_glyphs(
    image_size: int = 32, cache_dir: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Rendering:
    """Return all glyphs of all splits, from the cache or drawn (and then cached).

    Returns:
        `images` (N, S, S) uint8, `labels` (N,), `faces` (N,), `codes` (K,): see `Rendering`.

    Raises:
        ImportError: matplotlib or pillow is missing.
    """
    path = cache_path(cache_dir, image_size)
    rendering = load_rendering(path, image_size)
    if rendering is None:
        rendering = render_glyphs(image_size, _progress_bar if progress else None)
        store_rendering(path, rendering)
    return rendering


class Glyphs(Dataset[tuple[Tensor, int]]):
    """Characters (classes) in 16 typefaces (samples), each image distorted by an affine map.

    The fonts are the DejaVu and STIX text faces that ship with matplotlib. A class is a letter, number, punctuation
    mark or symbol that at least 14 faces cover: about 800 classes and 12,500 images. An image is light ink on a dark
    ground, scaled to fill the frame up to a border of 1/16 of its side.

    **Look-alikes.** Every glyph is scaled to the frame. Many characters would then look the same: Latin A, Greek
    Alpha and Cyrillic A; o and O; the dashes. Two glyphs look alike under two conditions. First, both stretched to a
    32 x 32 raster, less than 0.5% of their ink lies more than one pixel from ink of the other. Second, the sides of
    their unstretched ink boxes differ by less than 20% of the frame in total. Two characters look alike if their
    glyphs do in at least half of the faces that have both. Chains of look-alikes form a group. Its lowest code point
    stays, the others are dropped.

    **Splits.** Whole classes are divided about 40 / 10 / 50% into train, val and test, in the order of the SHA-256 of
    `"0:<character>"`. The division is always the same.

    **Distortion.** With `augment` (by default for train only) every access to an item draws a new distortion from
    torch's global random number generator. Without it, each image has one distortion, fixed by `seed`.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        image_size: side S of the images in pixels, 8 to 128.
        seed: seed of the fixed distortions, 0 to `2**63 - 1`; unused with `augment`.
        augment: new distortions on each access (True) or fixed ones (False); None: new for train, fixed otherwise.
        distortion: ranges that the distortions are drawn from.
        cache_dir: folder for the drawn glyphs (a file of some MB per image size), created if missing. None means
            `$XDG_CACHE_HOME/pml_gca` or `~/.cache/pml_gca`. If it cannot be written to, a warning is given once,
            and the glyphs are drawn again each time.
        progress: show a progress bar while drawing (a few seconds, only if they are not cached).

    Attributes:
        images: (N, S, S) uint8, the undistorted glyphs.
        labels: (N,) int64, from 0 to `num_classes - 1`.
        classes: the characters; `classes[label]` is the label's.
        num_classes: number of classes K in this split.
        faces: names of the 16 typefaces.
        face_index: (N,) int64, the index in `faces` of each image's typeface.

    An item is `(image, label)`: a (1, S, S) float32 tensor in [0, 1] and an int.

    Raises:
        ImportError: matplotlib or pillow is missing (`pip install 'pml-gca[examples]'`).
        TypeError, ValueError: an argument has the wrong type or value.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        image_size: int = 32,
        seed: int = 0,
        augment: bool | None = None,
        distortion: AffineRange | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.split = check_split(split)
        self.image_size = check_int("image_size", image_size, 8, EM)
        self.seed = check_int("seed", seed, 0, 2**63 - 1)
        self.augment = check_augment(augment, self.split)
        self.distortion = check_range("distortion", distortion, AffineRange())
        if not (cache_dir is None or isinstance(cache_dir, (str, os.PathLike))):
            raise TypeError(f"cache_dir must be a path or None, found {type(cache_dir).__name__}")

        check_flag("progress", progress)
        images, labels, faces, codes = load_glyphs(self.image_size, cache_dir, progress=progress)
        names = [chr(code) for code in codes]
        chosen = split_classes(names, self.split)
        new_label = torch.full((len(names),), -1, device="cpu")
        new_label[chosen] = torch.arange(len(chosen), device="cpu")
        all_labels = new_label[torch.from_numpy(labels)]
        members = all_labels >= 0
        self.classes = [names[i] for i in chosen]
        self.num_classes = len(chosen)
        self.faces = list(FACES)
        self.labels = all_labels[members]
        self.face_index = torch.from_numpy(faces)[members]
        self.images = torch.from_numpy(images)[members]
        self._label_list: list[int] = self.labels.tolist()
        self._source = self.images.unsqueeze(1)
        if not self.augment:
            self._source = warp_fixed(self._source, self.distortion, self.seed)

    def __len__(self) -> int:
        return len(self._label_list)

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[tuple[Tensor, int]]:
        """Return the items at `indices`, distorted as one batch. torch's DataLoader calls this method."""
        rows = [int(i) for i in indices]
        source = self._source[rows]
        pixels = warp(source, draw_affines(len(rows), self.distortion)) if self.augment else to_unit(source)
        return [(image, self._label_list[row]) for image, row in zip(pixels.unbind(), rows, strict=True)]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(split={self.split!r}, image_size={self.image_size}, classes="
            f"{self.num_classes}, images={len(self)}, augment={self.augment})"
        )

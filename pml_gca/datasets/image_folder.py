"""A user's own images, one folder per class, split by class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..utils.text import first_of
from .affine import AffineRange, check_range, draw_affines, to_unit, warp
from .splits import (
    DEFAULT_FRACTIONS,
    check_augment,
    check_fractions,
    check_int,
    check_split,
    split_classes,
    split_sizes,
)

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files that count as images."""

PHOTO_RANGE = AffineRange(rotation=10.0, scale=0.1, shear=0.1, shift=0.05)
"""Default distortion: milder than for glyphs, as photographs already vary."""

MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which they are kept in memory by default."""

_LAYOUT = "expected <root>/<class>/<image>, with images ending in " + ", ".join(EXTENSIONS)


def _import_pil() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "reading image files needs pillow, which is missing; install it with: pip install 'pml-gca[examples]'"
        ) from error
    return Image


def find_images(root: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Image files of each class folder of ``root``, both sorted by name; hidden ones are passed over.

    Raises:
        ValueError: ``root`` is no folder, holds no class folder, or a class folder holds no image.
    """
    folder = Path(root)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ValueError(f"root must be a folder of class folders; found {found} at {folder}; {_LAYOUT}")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = {path.name: _images_in(path) for path in entries if path.is_dir()}
    if not classes:
        raise ValueError(f"{folder} holds no class folder, only {len(entries)} other entries; {_LAYOUT}")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(f"{len(empty)} class folders of {folder} hold no image: {first_of(empty)}; {_LAYOUT}")
    return classes


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not path.name.startswith(".")
    )


def read_image(path: Path, size: int) -> Tensor:
    """One file as (3, size, size) uint8: upright, shorter side scaled to ``size``, centre cut out."""
    image_module = _import_pil()
    from PIL import ImageOps

    with image_module.open(path) as file:
        if file.format == "JPEG":
            file.draft("RGB", (2 * size, 2 * size))  # decodes large photographs at a fraction of the cost
        upright = ImageOps.exif_transpose(file).convert("RGB")
    square = ImageOps.fit(upright, (size, size), image_module.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def check_readable(root: Path, files: Sequence[Path], *, progress: bool = True) -> None:
    """Have PIL verify every file; ValueError that counts and names those it cannot read."""
    image_module = _import_pil()
    broken: list[Path] = []
    for path in _progress_bar(files, "checking images", progress):
        try:
            with image_module.open(path) as image:
                image.verify()
        except Exception:  # PIL's plugins raise errors of many kinds on malformed files
            broken.append(path)
    if broken:
        raise _unreadable(root, broken, len(files))


def load_images(root: Path, files: Sequence[Path], size: int, *, progress: bool = True) -> Tensor:
    """Decode every file, (N, 3, size, size) uint8; ValueError that counts and names those that fail."""
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    broken: list[Path] = []
    for i, path in enumerate(_progress_bar(files, "loading images", progress)):
        try:
            images[i] = read_image(path, size)
        except Exception:  # a file can pass verification and still be cut short
            broken.append(path)
    if broken:
        raise _unreadable(root, broken, len(files))
    return images


def _unreadable(root: Path, broken: Sequence[Path], total: int) -> ValueError:
    names = [path.relative_to(root) for path in broken]
    return ValueError(
        f"{len(broken)} of {total} images in {root} cannot be read: {first_of(names)}; "
        "expected image files that Pillow can open: repair or remove them"
    )


def _progress_bar(files: Sequence[Path], what: str, progress: bool, many: int = 500) -> Iterable[Path]:
    if not progress or len(files) < many:
        return files
    return tqdm(files, desc=what, unit="image")


class ClassFolder(Dataset[tuple[Tensor, int]]):
    """Images in ``root/<class>/<image>``, with classes (never images of one class) split three ways.

    All files of the folder are checked when the data set is made, those of other splits too. The split is a
    function of the folder names, ``fractions`` and ``seed`` alone: classes are sorted by the SHA-256 of
    ``"<seed>:<name>"``, and go to train, val and test in that order.

    Args:
        root: the folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        image_size: side S in pixels, 8 to 1024; the shorter side is scaled to it and the centre cut out.
        fractions: shares of the classes that go to train, val and test; only val's may be 0. Train and test
            get 2 classes or more, val 1 or more.
        seed: of the split, 0 to 2**63 - 1.
        augment: distort each drawn image afresh, by torch's global random number generator; None: for train
            only. Without it images are returned as they are.
        distortion: ranges of the affine distortion; None takes :data:`PHOTO_RANGE`.
        flip: with ``augment``, also mirror left and right with probability 1/2.
        in_memory: keep the decoded images; None: if this split's take up to 1 GiB.
        progress: show a progress bar where 500 files or more are read.

    Attributes:
        labels: (N,) int64, from 0 to ``num_classes - 1``.
        classes: names of the class folders; ``classes[label]`` is the label's.
        num_classes: number of classes in this split.
        files: path of each image.

    An item is ``(image, label)``: a (3, S, S) float32 tensor (RGB) in [0, 1] and an int.

    Raises:
        ImportError: pillow is missing (``pip install 'pml-gca[examples]'``).
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range; the folder does not exist, has too few classes to split, a
            class without images, or images that cannot be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        image_size: int = 64,
        fractions: Sequence[float] = DEFAULT_FRACTIONS,
        seed: int = 0,
        augment: bool | None = None,
        distortion: AffineRange | None = None,
        flip: bool = True,
        in_memory: bool | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise TypeError(f"root must be a path, found {type(root).__name__}: {root!r}")
        self.root = Path(root)
        self.split = check_split(split)
        self.image_size = check_int("image_size", image_size, 8, 1024)
        self.fractions = check_fractions(fractions)
        self.seed = check_int("seed", seed, 0, 2**63 - 1)
        self.augment = check_augment(augment, self.split)
        self.distortion = check_range("distortion", distortion, PHOTO_RANGE)
        self.flip = bool(flip)

        found = find_images(self.root)
        names = list(found)
        try:
            split_sizes(len(names), self.fractions)
        except ValueError as error:
            message = f"{self.root} holds {len(names)} class folder(s) ({first_of(names)}): {error}; {_LAYOUT}"
            raise ValueError(message) from None
        self.classes = [names[i] for i in split_classes(names, self.split, self.fractions, self.seed)]
        if not self.classes:
            raise ValueError(f"split 'val' is empty, as fractions gives it 0: {self.fractions}")
        check_readable(self.root, [path for files in found.values() for path in files], progress=progress)
        self.num_classes = len(self.classes)
        self.files = [path for name in self.classes for path in found[name]]
        self._label_list = [label for label, name in enumerate(self.classes) for _ in found[name]]
        self.labels = torch.tensor(self._label_list)
        if in_memory is None:
            in_memory = len(self.files) * 3 * self.image_size**2 <= MEMORY_LIMIT
        self._images: Tensor | None = None
        if in_memory:
            self._images = load_images(self.root, self.files, self.image_size, progress=progress)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[tuple[Tensor, int]]:
        """The items at ``indices``, distorted as one batch; torch's DataLoader calls this if it is there."""
        rows = [int(i) for i in indices]
        if self._images is None:
            chosen = [self.files[row] for row in rows]
            images = load_images(self.root, chosen, self.image_size, progress=False)
        else:
            images = self._images[rows]
        if self.augment:
            affines = draw_affines(len(rows), self.distortion)
            if self.flip:  # mirroring the input is negating the x coordinate that is read from
                affines[:, 0] *= torch.randint(0, 2, (len(rows), 1)).mul_(2).sub_(1)
            pixels = warp(images, affines, padding="border")
        else:
            pixels = to_unit(images)
        return [(image, self._label_list[row]) for image, row in zip(pixels.unbind(), rows, strict=True)]

"""`ClassFolder`: your own images, one folder per class, split by class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..utils.validation import check_choice, check_flag, check_functions, check_int, count_of, first_of
from .affine import AffineRange, check_augment, check_range, draw_affines, to_unit, warp
from .folder_layout import classes_of_split, notes_on, read_folder
from .image_files import LAYOUT, warn_left_out
from .image_reading import check_images, load_images, open_image
from .splits import DEFAULT_FRACTIONS, check_fractions, check_split, split_sizes

PHOTO_RANGE = AffineRange(rotation=10.0, scale=0.1, shear=0.1, shift=0.05)
"""Default distortion. It is milder than for glyphs because photographs already vary."""

DEFAULT_SIZE = 64
"""Side of the images, in pixels."""

MEMORY_LIMIT = 2**30
"""By default, decoded images are kept in memory up to this many bytes."""


class ClassFolder(Dataset[tuple[Any, int]]):
    """Images in `root/<class>/<image>`, whose classes are split into train, val and test.

    Or images that are split already: in `root/train/<class>/<image>`, `root/test/<class>/<image>` and perhaps
    `root/val/<class>/<image>`, each class in one of them. Without `val`, some classes of `train` are held out.

    Images may also lie in subfolders of a class folder. All formats that Pillow reads are taken. `to_rgb` makes images
    upright, with white where they are transparent. A warning counts and names the files that are left out. The first
    data set of a folder decodes all its images, those of other splits too. Later ones do not.

    The split depends only on the folder names, `fractions` and `seed`. Classes are sorted by the SHA-256 of
    `"<seed>:<name>"`, and go to train, val and test in that order.

    Args:
        root: the folder.
        split: `"train"`, `"val"` or `"test"`.
        image_size: side S in pixels, 8 to 1024; the shorter side is scaled to it and the centre cut out.
        fractions: shares of the classes for train, val and test; only val's may be 0. Train and test get 2 classes
            or more, val 1 or more. In a folder that is split already, they say how much of `train` is held out if
            there is no `val`.
        seed: seed of the split, 0 to `2**63 - 1`.
        augment: distort an image on each access, by torch's global random number generator; None: for train only.
            Without it, images are returned as they are.
        distortion: ranges of the affine distortion; None means `PHOTO_RANGE`.
        flip: with `augment`, also mirror left and right with probability 1/2.
        in_memory: keep the decoded images; None: if those of this split take at most 1 GiB.
        transform: applied to each image as its file holds it: a PIL image, upright, RGB, in its own size. It returns
            what the network takes, such as a (3, H, W) tensor; torchvision's and timm's transforms fit. It replaces
            all that `image_size`, `augment`, `distortion`, `flip` and `in_memory` say.
        unreadable: `"stop"` raises an error if images cannot be read, or a class folder holds none. `"skip"` leaves
            them out; the warning names them. The split of the other classes stays the same.
        progress: show a progress bar if 500 files or more are read.

    Attributes:
        labels: (N,) int64, from 0 to `num_classes - 1`.
        classes: names of the class folders; `classes[label]` is the label's.
        num_classes: number of classes in this split.
        files: path of each image.
        left_out: the reason for each file, or class folder, of the folder that is left out. Hidden files count if
            named as images.
        notes: sentences about what is unusual in the folder: images in subfolders, classes of one image.

    An item is `(image, label)`: a (3, S, S) float32 tensor (RGB) in [0, 1], or what `transform` returns, and an int.

    Raises:
        ImportError: pillow is missing (`pip install 'pml-gca[images]'`).
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or given beside a `transform` that replaces it; or the folder does
            not exist, has too few classes to split, a class without images or in two splits, or unreadable images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        image_size: int = DEFAULT_SIZE,
        fractions: Sequence[float] = DEFAULT_FRACTIONS,
        seed: int = 0,
        augment: bool | None = None,
        distortion: AffineRange | None = None,
        flip: bool = True,
        in_memory: bool | None = None,
        transform: Callable[[Any], Any] | None = None,
        unreadable: str = "stop",
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
        for name, value in {"flip": flip, "in_memory": in_memory, "progress": progress}.items():
            if not (name == "in_memory" and value is None):
                check_flag(name, value)
        self.transform = _check_transform(
            transform,
            image_size=image_size != DEFAULT_SIZE,
            augment=bool(augment),
            distortion=distortion is not None,
            in_memory=bool(in_memory),
        )
        check_choice("unreadable", unreadable, ("stop", "skip"))
        skip = unreadable == "skip"

        found = read_folder(self.root, skip_empty=skip)
        if found.given is None:
            try:
                split_sizes(len(found.files), self.fractions)
            except ValueError as error:
                hints = "; ".join([*found.notes, LAYOUT])
                there_are = f"{count_of(len(found.files), 'class folder')} ({first_of(list(found.files))})"
                raise ValueError(f"{self.root} holds {there_are}: {error}; {hints}") from None
        chosen = classes_of_split(found, self.split, self.fractions, self.seed, self.root)
        if not chosen:
            raise ValueError(f"split 'val' is empty, as fractions gives it 0: {self.fractions}")
        everything = [path for files in found.files.values() for path in files]
        failed = {}
        if skip:
            failed = check_images(self.root, everything, progress=progress, skip=True)
        reasons = {path: f"cannot be read ({type(error).__name__})" for path, error in failed.items()}
        self.left_out = found.left_out | reasons
        warn_left_out(self.root, self.left_out)
        if not skip:
            check_images(self.root, everything, progress=progress)
        left = {name: [path for path in files if path not in failed] for name, files in found.files.items()}
        self.notes = notes_on(left)
        self.classes = [name for name in chosen if left[name]]
        if not self.classes:
            raise ValueError(f"no image of the {self.split} split of {self.root} can be read")
        self.num_classes = len(self.classes)
        self.files = [path for name in self.classes for path in left[name]]
        self._label_list = [label for label, name in enumerate(self.classes) for _ in left[name]]
        self.labels = torch.tensor(self._label_list, device="cpu")
        if self.transform is not None:
            in_memory = False
        elif in_memory is None:
            in_memory = len(self.files) * 3 * self.image_size**2 <= MEMORY_LIMIT
        self._images: Tensor | None = None
        if in_memory:
            self._images = load_images(self.root, self.files, self.image_size, progress=progress)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[tuple[Any, int]]:
        """Return the items at `indices`, distorted as one batch. torch's DataLoader calls this method."""
        rows = [int(i) for i in indices]
        if self.transform is not None:
            return [(self.transform(open_image(self.root, self.files[row])), self._label_list[row]) for row in rows]
        if self._images is None:
            chosen = [self.files[row] for row in rows]
            images = load_images(self.root, chosen, self.image_size, progress=False, threads=1)
        else:
            images = self._images[rows]
        if self.augment:
            affines = draw_affines(len(rows), self.distortion)
            if self.flip:  # to mirror, negate the x coordinate that is read from
                affines[:, 0] *= torch.randint(0, 2, (len(rows), 1), device="cpu").mul_(2).sub_(1)
            pixels = warp(images, affines, padding="border")
        else:
            pixels = to_unit(images)
        return [(image, self._label_list[row]) for image, row in zip(pixels.unbind(), rows, strict=True)]


def _check_transform(transform: Callable[[Any], Any] | None, **given: bool) -> Callable[[Any], Any] | None:
    """Return the transform. Raise if it is no function, or if a value is given for an option that it replaces."""
    check_functions(transform=transform)
    if isinstance(transform, type):
        name = transform.__name__
        raise TypeError(f"transform must be a function, got the class {name}. Make one: {name}(...)")
    replaced = [name for name, is_given in given.items() if is_given]
    if transform is not None and replaced:
        them = "it" if len(replaced) == 1 else "them"
        raise ValueError(f"transform replaces {', '.join(replaced)}: leave {them} out")
    return transform

"""The usual data sets of image retrieval, read and split as papers do."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from numbers import Real
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..utils.optional_imports import import_pillow
from ..utils.validation import check_choice, check_flag, check_int, first_of
from . import transforms
from .class_subset import ClassSubset, ImageSource, Label, UnreadableImageError, raw_labels, read_image
from .data_root import check_root
from .image_files import warn_left_out
from .rgb import UnknownRangeError, to_rgb
from .sources import BENCHMARKS, FOLDER, MIN_CLASSES, find_source, open_splits, splits_to_check
from .splits import split_classes

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark"]

UNREADABLE = ("stop", "skip")


@dataclass(frozen=True)
class Benchmark:
    """A data set, ready to train and test on.

    Attributes:
        name: e.g. `"cub"`.
        train: training images, augmented.
        val: images of the held-out training classes, with the test transform; None if none are held out.
        test: `{"test": ...}`, or `{"query": ..., "gallery": ...}` with common labels.
        recall_at: the K of Recall@K that papers report.
        left_out: paths of unreadable files, if these are skipped.
        notes: sentences about what is unusual in a folder of one's own images.
        root: the data set's folder.
    """

    name: str
    train: ClassSubset
    val: ClassSubset | None
    test: dict[str, ClassSubset]
    recall_at: tuple[int, ...]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    root: Path | None = None

    @property
    def title(self) -> str:
        """The name of the data set; of one's own images, that of their folder."""
        return self.root.resolve().name if self.name == FOLDER and self.root else self.name

    @property
    def splits_to_eval(self) -> list[tuple[str, list[str]]] | None:
        """Splits for PML's testers, each query split with its references; None if each split searches itself.

        Testers alter the list, and each access therefore makes a new one.
        """
        query, *gallery = self.test
        return [(query, gallery)] if gallery else None


def load_benchmark(
    name: str,
    root: str | os.PathLike[str],
    *,
    image_size: int = 224,
    input_config: transforms.InputConfig = transforms.IMAGENET,
    val_fraction: float = 0.1,
    seed: int = 0,
    unreadable: str = "stop",
    check_train: bool = True,
    download: bool = False,
    train_transform: Callable[[Any], Any] | None = None,
    test_transform: Callable[[Any], Any] | None = None,
    progress: bool = True,
) -> Benchmark:
    """Read a benchmark's training and test images, and hold out some training classes for validation.

    The validation classes depend only on the raw labels, `val_fraction` and `seed`. The training classes are
    sorted by the SHA-256 of `"<seed>:<raw label>"`, and the last ones are held out: at least 2, and at least 2 stay.

    Args:
        name: `"cub"`, `"cars196"`, `"sop"`, `"inshop"`, or `"folder"` for your own images in
            `<root>/<class>/<image>`. Half the classes of a folder are for training and half for testing, with any
            seed. Or in `<root>/train/<class>/<image>` and `<root>/test/<class>/<image>`, and the classes to hold out
            in `<root>/val/<class>/<image>`, if there are any.
        root: the data set's folder.
        image_size: side of the images in pixels, 8 to 1024.
        input_config: what the backbone takes, for the transforms that are not given.
        val_fraction: share of the training classes to hold out, in [0, 1); 0 for none. A folder with `val` has its
            classes held out with any share above 0.
        seed: seed for the choice of held-out classes, 0 to `2**63 - 1`.
        unreadable: `"stop"` raises an error on access to a file that cannot be read, and for a class folder without
            images. `"skip"` decodes all files up front, leaves both out, and warns.
        check_train: whether to look for the files to train and validate on. False is for testing alone. These files
            may then be missing, and only access to one of them fails. `unreadable="skip"` does not decode them.
        download: let PML download the data set if `root` is empty or does not exist. Not for `"inshop"` and
            `"folder"`.
        train_transform: applied to PIL images of any mode, see `to_rgb`; None means `train_transform`.
        test_transform: the same for validation and test images; None means `test_transform`.
        progress: show a progress bar if 500 files or more are decoded up front.

    Raises:
        ImportError: pillow is missing, or torchvision if a transform is not given.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, something is missing in `root`, or there are too few classes.
    """
    source = find_source(name)
    check_int("seed", seed, 0, 2**63 - 1)
    for flag, value in {"check_train": check_train, "download": download, "progress": progress}.items():
        check_flag(flag, value)
    fraction = _check_fraction(val_fraction)
    check_choice("unreadable", unreadable, UNREADABLE)
    if not isinstance(input_config, transforms.InputConfig):
        raise TypeError(f"input_config must be an InputConfig, found {type(input_config).__name__}: {input_config!r}")
    folder = check_root(root)
    for argument, transform in (("train_transform", train_transform), ("test_transform", test_transform)):
        if not (transform is None or callable(transform)):
            raise TypeError(f"{argument} must be a function or None, found {type(transform).__name__}: {transform!r}")
    check_int("image_size", image_size, 8, 1024)
    import_pillow()
    to_train = train_transform or transforms.train_transform(image_size, input_config=input_config)
    to_test = test_transform or transforms.test_transform(image_size, input_config=input_config)

    skip = unreadable == "skip"
    splits = open_splits(name, folder, download=download, check_train=check_train, skip_empty=skip)
    notes = getattr(splits["train"], "notes", [])
    if hasattr(splits["train"], "left_out"):  # the user's own folder may hold other files, too
        warn_left_out(folder, splits["train"].left_out)
    looked_at = splits_to_check(splits, check_train)
    as_rgb = train_transform is None or test_transform is None
    left_out = find_unreadable(looked_at, progress, as_rgb=as_rgb) if skip else {}
    if left_out:
        total = sum(len(dataset.paths) for dataset in looked_at)
        verb = "is" if len(left_out) == 1 else "are"
        some = [f"{path} ({reason})" for path, reason in left_out.items()]
        warnings.warn(
            f"{len(left_out)} of {total} images of {name} cannot be read and {verb} left out: {first_of(some, 10)}",
            stacklevel=2,
        )

    training = splits.pop("train")
    present = {split: _classes_left(dataset, left_out) for split, dataset in splits.items()}
    testing = sorted(set().union(*present.values()))
    for split, classes in present.items():
        _check_classes(len(classes), f"the {split} split of {name} in {folder}")
    train_classes, val_classes = hold_out_classes(training, fraction, seed, left_out, f"{name} in {folder}")

    def subset(dataset: ImageSource, classes: list[Any], transform: Callable[[Any], Any]) -> ClassSubset:
        out = [path for path in dataset.paths if path in left_out]
        return ClassSubset(dataset, classes, transform=transform, leave_out=out)

    return Benchmark(
        name=name,
        train=subset(training, train_classes, to_train),
        val=subset(training, val_classes, to_test) if fraction else None,
        test={split: subset(dataset, testing, to_test) for split, dataset in splits.items()},
        recall_at=source.recall_at,
        left_out=list(left_out),
        notes=list(notes),
        root=folder,
    )


def _check_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"val_fraction must be a number, found {type(value).__name__}: {value!r}")
    fraction = float(value)
    if not 0.0 <= fraction < 1.0:  # also catches NaN
        raise ValueError(f"val_fraction must lie in [0, 1), found {value!r}")
    return fraction


def find_unreadable(
    splits: Sequence[ImageSource], progress: bool, many: int = 500, *, as_rgb: bool = True
) -> dict[str, str]:
    """Decode all files, and with `as_rgb` convert them to RGB. Return path and reason of those that fail."""
    jobs = [(dataset, row, as_rgb) for dataset in splits for row in range(len(dataset.paths))]
    failed = {}
    with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
        reasons = pool.imap(_why_unreadable, jobs, chunksize=32)
        bar = tqdm(
            reasons, desc="checking images", unit="image", total=len(jobs), disable=not progress or len(jobs) < many
        )
        for (dataset, row, _), reason in zip(jobs, bar, strict=True):
            if reason is not None:
                failed[dataset.paths[row]] = reason
    return failed


def _why_unreadable(job: tuple[ImageSource, int, bool]) -> str | None:
    dataset, row, as_rgb = job
    try:
        image = read_image(dataset, row)
        if as_rgb:
            to_rgb(image)
    except UnreadableImageError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}"
    except UnknownRangeError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _classes_left(dataset: ImageSource, left_out: dict[str, str]) -> set[Label]:
    pairs = zip(dataset.paths, raw_labels(dataset), strict=True)
    return {label for path, label in pairs if path not in left_out}


def hold_out_classes(
    dataset: ImageSource, fraction: float, seed: int, left_out: dict[str, str], what: str
) -> tuple[list[Label], list[Label]]:
    """Return the raw labels of the classes to train on, and those of the classes to hold out.

    Unreadable images do not change the choice. A data set may say which classes to hold out: `held_out`.
    """
    classes: list[Any] = sorted(set(raw_labels(dataset)))
    left = _classes_left(dataset, left_out)
    given = getattr(dataset, "held_out", None)
    if not fraction:
        _check_classes(len(left), f"the train split of {what}")
        return [label for label in classes if label in left], []
    needed = 2 * MIN_CLASSES
    if given is None and len(classes) < needed:
        raise ValueError(
            f"the train split of {what} must have at least {needed} classes, {MIN_CLASSES} to train on and "
            f"{MIN_CLASSES} to hold out, found {len(classes)}; with none held out, {MIN_CLASSES} are enough"
        )
    names = [str(label) for label in classes]
    parts = []
    for part, title in (("train", "training"), ("test", "validation")):
        if given is None:
            chosen = [classes[i] for i in split_classes(names, part, (1.0 - fraction, 0.0, fraction), seed)]
        else:
            chosen = [label for label in classes if (label in given) == (part == "test")]
        kept = [label for label in chosen if label in left]
        _check_classes(len(kept), f"the {title} part of the train split of {what}")
        parts.append(kept)
    return parts[0], parts[1]


def _check_classes(count: int, what: str) -> None:
    if count < MIN_CLASSES:
        raise ValueError(f"{what} must have at least {MIN_CLASSES} classes with images, found {count}")

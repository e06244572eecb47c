"""The data set class and files of each benchmark, and checks for missing images."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..utils.optional_imports import import_pillow
from ..utils.validation import count_of, first_of, suggestion
from .class_subset import ImageSource, Label, raw_labels
from .data_root import found_at, missing_images, other_root
from .folder_layout import read_folder
from .rgb import to_rgb
from .splits import split_classes

CUB, CARS196, SOP, INSHOP = "cub", "cars196", "sop", "inshop"
FOLDER = "folder"
MIN_CLASSES = 2
"""Smallest number of classes of a data set. With one class there is nothing to tell apart."""


@dataclass(frozen=True)
class Source:
    """The files of a benchmark, the class that reads it, and how it is scored.

    Attributes:
        dataset: dotted name of the class that reads it, a data set of PML's kind.
        recall_at: the K of Recall@K.
        label_files: files of a complete root besides the images, for data sets that PML can download. Empty for
            those that check their root themselves.
        paired: the label files with one line for each image.
        rows: the label files whose lines together list the images of all splits.
        headed: whether label files start with a line that is not read.
        test_splits: splits of `dataset` to test on; the first holds the queries.
    """

    dataset: str
    recall_at: tuple[int, ...]
    label_files: tuple[str, ...] = ()
    paired: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    headed: bool = False
    test_splits: tuple[str, ...] = ("test",)


BENCHMARKS = {
    CUB: Source(
        dataset="pytorch_metric_learning.datasets.CUB",
        recall_at=(1, 2, 4, 8),
        label_files=("CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt"),
        paired=("CUB_200_2011/images.txt", "CUB_200_2011/image_class_labels.txt"),
        rows=("CUB_200_2011/image_class_labels.txt",),
    ),
    CARS196: Source(
        dataset="pytorch_metric_learning.datasets.Cars196",
        recall_at=(1, 2, 4, 8),
        label_files=("names.csv", "anno_train.csv", "anno_test.csv"),
        rows=("anno_train.csv", "anno_test.csv"),
    ),
    SOP: Source(
        dataset="pytorch_metric_learning.datasets.StanfordOnlineProducts",
        recall_at=(1, 10, 100, 1000),
        label_files=("Stanford_Online_Products/Ebay_train.txt", "Stanford_Online_Products/Ebay_test.txt"),
        headed=True,
    ),
    INSHOP: Source(
        dataset="pml_gca.datasets.in_shop.InShop",
        recall_at=(1, 10, 20, 30, 40, 50),
        test_splits=("query", "gallery"),
    ),
    FOLDER: Source(dataset="pml_gca.datasets.sources.FolderHalf", recall_at=(1, 2, 4, 8)),
}


class FolderHalf(Dataset[tuple[Any, str]]):
    """The training or test classes of a user's own images, as a data set of PML's kind. See `read_folder`.

    Raw labels are the folders' names. `split_classes` with seed 0 gives half of the classes each. In a folder that is
    split already, `train` and `val` are for training, and `held_out` has the classes of `val`; else it is None. Images
    are upright RGB. `left_out` has the reason for each file of the folder that is left out, `notes` what is unusual.
    """

    def __init__(self, root: str | os.PathLike[str], split: str, *, skip_empty: bool = False) -> None:
        found = read_folder(root, skip_empty=skip_empty)
        self.left_out, self.notes = found.left_out, found.notes
        self.held_out: list[str] | None = None
        names = list(found.files)
        if len(names) < 2 * MIN_CLASSES:
            raise ValueError(f"{root} must hold at least {2 * MIN_CLASSES} class folders, found {len(names)}")
        if found.given is None:
            chosen = [names[i] for i in split_classes(names, split, (0.5, 0.0, 0.5))]
        else:
            self.held_out = found.given.get("val")
            chosen = found.given["test"] if split == "test" else [*found.given["train"], *(self.held_out or ())]
        self.paths = [str(path) for name in chosen for path in found.files[name]]
        self.labels = [name for name in chosen for _ in found.files[name]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        with import_pillow().open(self.paths[index]) as image:
            return to_rgb(image), self.labels[index]


def find_source(name: object) -> Source:
    """Return the entry of `BENCHMARKS`. Raise TypeError if `name` is not a str, ValueError if it is not known."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, found {type(name).__name__}: {name!r}")
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"no benchmark is called {name!r}{suggestion(name, BENCHMARKS)}; there are {known}")
    return BENCHMARKS[name]


def open_splits(
    name: str, root: Path, *, download: bool, check_train: bool = True, skip_empty: bool = False
) -> dict[str, ImageSource]:
    """Return the train and test splits of a benchmark by name, after a check that all their images are there.

    Training images are looked for only with `check_train`. With `skip_empty`, class folders of one's own images that
    hold none are left out.

    Raises:
        ValueError: something is missing in `root`. Its label files contradict each other, or name files outside it. Or
            `download` is true, and the data set cannot be downloaded.
    """
    source = find_source(name)
    module, _, attribute = source.dataset.rpartition(".")
    dataset_class = getattr(import_module(module), attribute)
    if download and name == FOLDER:
        raise ValueError(f"{FOLDER!r} stands for your own images, which cannot be downloaded")
    if download and (name == INSHOP or _is_empty(root)):
        _open(dataset_class, name, source, root, "train", download=True)  # In-shop says where to get it
    if source.label_files:
        _check_label_files(name, source, root)
    options = {"skip_empty": True} if skip_empty and name == FOLDER else {}
    names = ("train", *source.test_splits)
    splits = {split: _open(dataset_class, name, source, root, split, **options) for split in names}
    _check_rows(name, source, root, splits)
    paths = [path for dataset in splits_to_check(splits, check_train) for path in dataset.paths]
    missing = missing_images(paths)
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(paths)} images of {name} are not in {root}: {first_of(missing)}; expected all "
            "that its label files list: was the archive unpacked completely?"
        )
    return splits


def splits_to_check(splits: Mapping[str, ImageSource], check_train: bool) -> list[ImageSource]:
    """Return the splits of a benchmark whose files must be there."""
    return [dataset for split, dataset in splits.items() if check_train or split != "train"]


def _is_empty(root: Path) -> bool:
    return not root.exists() or (root.is_dir() and not os.listdir(root))


def _check_label_files(name: str, source: Source, root: Path) -> None:
    def is_root(folder: Path) -> bool:
        return all((folder / file).is_file() for file in source.label_files)

    expected = (
        f"expected the folder that holds {', '.join(source.label_files)}; "
        "pytorch-metric-learning can download them, but only into a new or empty folder"
    )
    if not root.is_dir():
        raise ValueError(f"root must be the folder of {name}, found {found_at(root)} at {root}; {expected}")
    if not is_root(root):
        missing = [file for file in source.label_files if not (root / file).is_file()]
        hint = other_root(root, is_root)
        raise ValueError(f"{first_of(missing)} of {name} is missing in {root}{hint}; {expected}")
    counts = {file: _count_lines(root / file) for file in source.paired}
    if len(set(counts.values())) > 1:  # PML would silently ignore the surplus
        found = ", ".join(f"{count} in {file}" for file, count in counts.items())
        raise ValueError(f"the label files of {name} in {root} must have equally many lines, found {found}")

    for file in () if source.headed else source.label_files:
        if (root / file).read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(
                f"{file} of {name} in {root} starts with a byte order mark, which would be read as part of its first "
                "entry; expected plain text: save it as UTF-8 without one"
            )


def _check_rows(name: str, source: Source, root: Path, splits: Mapping[str, ImageSource]) -> None:
    """Refuse label files with images that would be ignored, counted twice or read from elsewhere."""
    paths = [os.path.abspath(path) for dataset in splits.values() for path in dataset.paths]
    listed = sum(_count_lines(root / file) for file in source.rows)
    if source.rows and listed != len(paths):
        raise ValueError(
            f"{', '.join(source.rows)} of {name} in {root} list {listed} images, but only {len(paths)} have a class of "
            "the data set and the same number in all label files; expected all: are the files as distributed?"
        )
    outside = [path for path in paths if not path.startswith(os.path.join(os.path.abspath(root), ""))]
    if outside:
        raise ValueError(
            f"{len(outside)} of the {len(paths)} images of {name} lie outside of {root}: {first_of(outside)}; expected "
            "names relative to it"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(
            f"found {count_of(len(twice), 'image')} of {name} in {root} listed more than once: {first_of(twice)}; "
            "expected each once"
        )
    training = set(raw_labels(splits["train"]))
    tested: set[Label] = set().union(*(raw_labels(dataset) for split, dataset in splits.items() if split != "train"))
    both: list[Any] = sorted(training & tested)
    if both:
        raise ValueError(
            f"found {count_of(len(both), 'class', 'classes')} of {name} in {root} both to train and to test on: "
            f"{first_of(both)}; expected none"
        )


def _count_lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_bytes().splitlines())


def _open(dataset_class: Any, name: str, source: Source, root: Path, split: str, **options: Any) -> Any:
    try:
        return dataset_class(root, split, **options)
    except (IndexError, ValueError) as error:
        if not source.label_files:
            raise  # its own message says what is wrong
        raise ValueError(
            f"the label files of {name} in {root} ({', '.join(source.label_files)}) cannot be understood "
            f"({type(error).__name__}: {error}); expected them as they are distributed"
        ) from error

"""Chosen classes of a data set of PML's kind, with labels from 0."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..utils.validation import check_positive_int, first_of
from .rgb import decode, what_to_do

Label = int | str
"""A class label of the data set itself: a number, or the name of a folder."""


class UnreadableImageError(ValueError):
    """An image file cannot be read. The message names the file and the reason."""


class ImageSource(Protocol):
    """The interface of PML's data sets: file and raw label of each item, and items that start with the image."""

    paths: Any
    labels: Any

    def __getitem__(self, index: int, /) -> Any: ...


class Labelled(Protocol):
    """A data set of this package: (N,) labels from 0."""

    labels: Tensor


class LabelledClasses(Labelled, Protocol):
    """A `Labelled` data set with the classes that its labels index."""

    classes: list[Any]


def raw_labels(dataset: ImageSource) -> list[Label]:
    """Return the raw labels, which may be a list, an array or a tensor, as a list. Raise as `ClassSubset` does."""
    if not (hasattr(dataset, "paths") and hasattr(dataset, "labels")):
        raise TypeError(f"dataset must have paths and labels, like PML's data sets, found {type(dataset).__name__}")
    found = dataset.labels
    labels = found.tolist() if hasattr(found, "tolist") else list(found)
    if len(labels) != len(dataset.paths):
        raise ValueError(f"dataset must have a label for each path, found {len(labels)} for {len(dataset.paths)}")
    return labels


def read_image(dataset: ImageSource, row: int) -> Any:
    """Return the decoded image of one item. Raise UnreadableImageError if its file cannot be read."""
    image: Any = None
    try:
        image = dataset[row][0]
        if hasattr(image, "load"):  # PIL would decode on first use, in the transform
            decode(image)
    except Exception as error:  # PIL's plugins raise errors of many kinds on malformed files
        if hasattr(image, "close"):
            image.close()
        raise UnreadableImageError(
            f"{dataset.paths[row]} cannot be read as an image ({type(error).__name__}: {error}); "
            f"{what_to_do(error)}, or skip unreadable files"
        ) from error
    return image


class ClassSubset(Dataset[tuple[Any, int]]):
    """The images of some classes of `dataset`, in its order, with labels from 0.

    Args:
        dataset: one of PML's data sets, or any with `paths`, `labels` and items that start with an image.
        classes: raw labels of the classes to take; None takes all that have images. New labels number these in
            ascending order, and a class without images has a number, too.
        transform: applied to each image; None for none.
        leave_out: paths of images to leave out, as str or path objects, absolute or relative. A warning names those
            that `dataset` does not have.

    Attributes:
        labels: (N,) int64, from 0 to `num_classes - 1`.
        classes: raw labels, ascending; `classes[label]` is the label's.
        num_classes: number of classes.
        files: path of each image.

    An item is `(image, label)`; the label is an int.

    Raises:
        TypeError: `dataset` has no `paths` or `labels`; `classes` or `leave_out` is a single text or path.
        ValueError: paths and labels differ in number, a class is given twice, or no image is left.
        UnreadableImageError: on access to an item whose file cannot be read.
    """

    def __init__(
        self,
        dataset: ImageSource,
        classes: Iterable[Label] | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        leave_out: Collection[str | os.PathLike[str]] = (),
    ) -> None:
        raw = raw_labels(dataset)
        kept = _rows_left(dataset, leave_out)
        if isinstance(classes, (str, bytes)):
            raise TypeError(f"classes must be a collection of raw labels, such as [{classes!r}], found {classes!r}")
        given = classes.tolist() if isinstance(classes, (Tensor, np.ndarray)) else classes
        chosen: list[Any] = list({raw[row] for row in kept} if given is None else given)
        self.classes = sorted(chosen)
        numbers = {label: number for number, label in enumerate(self.classes)}
        if len(numbers) < len(self.classes):
            raise ValueError(f"classes must differ from each other, found one twice: {self.classes}")
        self._rows = [row for row in kept if raw[row] in numbers]
        if not self._rows:
            raise ValueError(f"no image of the {len(self.classes)} chosen classes is left of {len(raw)} images")
        self.num_classes = len(self.classes)
        self.files = [dataset.paths[row] for row in self._rows]
        self._label_list = [numbers[raw[row]] for row in self._rows]
        self.labels = torch.tensor(self._label_list, device="cpu")
        self.transform = transform
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: SupportsIndex) -> tuple[Any, int]:
        image = read_image(self._dataset, self._rows[index])
        return image if self.transform is None else self.transform(image), self._label_list[index]


def _rows_left(dataset: ImageSource, leave_out: object) -> list[int]:
    """Return the rows of the images whose paths are not in `leave_out`."""
    if isinstance(leave_out, (str, bytes, os.PathLike)) or not isinstance(leave_out, Iterable):
        found = f"{type(leave_out).__name__}: {leave_out!r}"
        raise TypeError(f"leave_out must be a collection of paths, such as ['folder/image.jpg'], found {found}")
    given = list(leave_out)
    wrong = [path for path in given if not isinstance(path, (str, os.PathLike))]
    if wrong:
        raise TypeError(f"leave_out must hold paths, found {type(wrong[0]).__name__}: {wrong[0]!r}")
    if not given:
        return list(range(len(dataset.paths)))
    out = {os.path.abspath(path): path for path in given}
    paths = [os.path.abspath(path) for path in dataset.paths]
    unknown = [out[path] for path in out.keys() - set(paths)]
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(out)} paths in leave_out are not images of the data set: "
            f"{first_of(sorted(map(str, unknown)))}; expected paths such as {dataset.paths[0]}",
            stacklevel=3,
        )
    return [row for row, path in enumerate(paths) if path not in out]


def small_classes(dataset: LabelledClasses, samples_per_class: int) -> list[tuple[str, int]]:
    """Return name and number of images of each class with fewer than `samples_per_class` images."""
    check_positive_int("samples_per_class", samples_per_class, minimum=0)
    counts = torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    pairs = zip(dataset.classes, counts, strict=True)
    return [(str(name), count) for name, count in pairs if count < samples_per_class]


def check_queries(what: str, queries: Labelled, gallery: Labelled | None = None) -> str | None:
    """Check that retrieval can be measured: each query needs another image of its class to find.

    Args:
        what: name of the queries in messages, such as "the validation set".
        queries: a data set with (N,) `labels`.
        gallery: the data set that they search, with common labels; None if they search each other.

    Returns:
        A note about queries that have nothing to find and do not count, or that can only find their own class. None
        if all is well.

    Raises:
        ValueError: no query has anything to find, and recall would be NaN.
    """
    searched = queries.labels if gallery is None else gallery.labels
    length = 1 + int(max(queries.labels.max(), searched.max()))
    to_find = torch.bincount(searched, minlength=length)[queries.labels] - int(gallery is None)
    lone, total = int((to_find == 0).sum()), len(queries.labels)
    if lone == total:
        other = "another image of its class" if gallery is None else "an image of its class in the gallery"
        raise ValueError(
            f"{what} cannot be evaluated: none of its images ({total}) has {other} to find; expected a class of 2 "
            "images or more"
        )
    if lone:
        rest = (
            "has no image of its class to find, and does"
            if lone == 1
            else "have no image of their class to find, and do"
        )
        return f"{lone} of {total} images of {what} {rest} not count"
    if len(searched.unique()) == 1:
        return f"all images of {what} are of one class: recall is 1 with any model"
    return None

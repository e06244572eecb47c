import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pml_gca.datasets import ClassSubset, UnreadableImageError, check_queries, small_classes


class Listed:
    """A PML-style data set without files; its images are the numbers of the items."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels
        self.paths = [f"{i}.jpg" for i in range(len(labels))]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return np.array(index), self.labels[index]


class Files:
    """A PML-style data set of files that are opened but not decoded."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.labels = list(range(len(paths)))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.open(self.paths[index]), self.labels[index]


raw = st.one_of(
    st.lists(st.integers(-(10**9), 10**9) | st.integers(0, 5), min_size=1, max_size=40),
    st.lists(st.text(max_size=2), min_size=1, max_size=40),
)


@given(labels=raw, data=st.data())
def test_labels_number_the_classes_in_order(labels: list[Any], data: st.DataObject) -> None:
    classes = data.draw(st.none() | st.lists(st.sampled_from(labels), min_size=1, unique=True))
    left_out = data.draw(st.sets(st.integers(0, len(labels) - 1), max_size=len(labels) // 2))
    kept = [i for i in range(len(labels)) if i not in left_out and (classes is None or labels[i] in classes)]
    dataset = Listed(labels)
    arguments = {"classes": classes, "leave_out": [dataset.paths[i] for i in left_out]}
    if not kept:
        with pytest.raises(ValueError, match="no image of the"):
            ClassSubset(dataset, **arguments)
        return
    subset = ClassSubset(dataset, **arguments)
    assert subset.classes == sorted(set(labels[i] for i in kept) if classes is None else classes)
    assert subset.num_classes == len(subset.classes)
    assert subset.labels.dtype == torch.int64
    assert len(subset) == len(kept)
    assert subset.files == [dataset.paths[i] for i in kept]
    assert [subset.classes[k] for k in subset.labels] == [labels[i] for i in kept]
    assert [(int(image), label) for image, label in subset] == list(zip(kept, subset.labels.tolist(), strict=True))


@pytest.mark.parametrize("labels", [[7, 3, 7, 5], np.array([7, 3, 7, 5]), torch.tensor([7, 3, 7, 5])])
def test_labels_of_any_kind(labels: Any) -> None:
    subset = ClassSubset(Listed(labels), [7, 5])
    assert subset.classes == [5, 7]
    assert subset.labels.tolist() == [1, 1, 0]
    assert type(subset[-1][1]) is int
    assert subset[np.int64(2)][0] == 3
    with pytest.raises(IndexError):
        subset[3]


def test_classes_without_images_count() -> None:
    subset = ClassSubset(Listed([4, 9, 9]), [9, 6, 4])
    assert subset.classes == [4, 6, 9]
    assert subset.labels.tolist() == [0, 2, 2]
    assert small_classes(subset, 1) == [("6", 0)]
    assert small_classes(subset, 2) == [("4", 1), ("6", 0)]
    assert small_classes(subset, 0) == []


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="dataset must have paths and labels, like PML's data sets, found list"):
        ClassSubset([1, 2])  # type: ignore[arg-type]
    uneven = Listed([1, 2])
    uneven.paths.append("more")
    with pytest.raises(ValueError, match="a label for each path, found 2 for 3"):
        ClassSubset(uneven)
    with pytest.raises(ValueError, match=r"found one twice: \[1, 1\]"):
        ClassSubset(Listed([1, 2]), [1, 1])
    with pytest.raises(ValueError, match="no image of the 1 chosen classes is left of 2 images"):
        ClassSubset(Listed([1, 2]), [3])


@pytest.mark.parametrize("given", ["0.jpg", b"0.jpg", Path("0.jpg"), None, 3, [0], ["1.jpg", b"0.jpg"]])
def test_leave_out_must_be_a_collection_of_paths(given: Any) -> None:
    with pytest.raises(TypeError, match=r"^leave_out must (be a collection of|hold) paths, .*found "):
        ClassSubset(Listed([1, 2]), leave_out=given)


@pytest.mark.parametrize("make", [str, Path, lambda name: Path.cwd() / name, lambda name: f"./{name}", np.str_])
@pytest.mark.parametrize("collection", [list, set, tuple, dict.fromkeys, iter])
@pytest.mark.filterwarnings("error")
def test_leave_out_in_any_form(make: Any, collection: Any) -> None:
    subset = ClassSubset(Listed([5, 6, 7]), leave_out=collection([make("0.jpg"), make("2.jpg")]))
    assert subset.files == ["1.jpg"]
    assert subset.classes == [6]


def test_unknown_paths_in_leave_out_are_named() -> None:
    message = (
        r"2 of 3 paths in leave_out are not images of the data set: 3\.jpg, x/0\.jpg; expected paths such as 0\.jpg"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        subset = ClassSubset(Listed([5, 6]), leave_out=["1.jpg", "x/0.jpg", "3.jpg"])
    assert subset.files == ["0.jpg"]
    assert caught[0].filename == __file__


def test_classes_of_any_kind() -> None:
    words = Listed(["a", "b", "ab"])
    with pytest.raises(TypeError, match=r"classes must be a collection of raw labels, such as \['ab'\], found 'ab'"):
        ClassSubset(words, "ab")
    assert ClassSubset(words, ["ab"]).files == ["2.jpg"]
    for classes in (np.array([7, 5]), torch.tensor([7, 5])):
        assert ClassSubset(Listed([7, 3, 5]), classes).files == ["0.jpg", "2.jpg"]


@pytest.fixture
def broken(tmp_path: Path) -> Files:
    """Three unreadable files and an intact one."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "whole.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-2000])
    (tmp_path / "text.jpg").write_text("no image")
    return Files([str(tmp_path / name) for name in ("cut.jpg", "text.jpg", "gone.jpg", "whole.jpg")])


@pytest.mark.filterwarnings("error")  # also of files that are left open
def test_unreadable_files_are_named(broken: Files) -> None:
    subset = ClassSubset(broken, transform=lambda image: image.size)
    assert subset[3] == ((64, 64), 3)
    for i, reason in enumerate(("truncated", "cannot identify", "No such file")):
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            subset[i]
        assert str(caught.value).startswith(f"{broken.paths[i]} cannot be read as an image (")
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is UnreadableImageError
        assert str(again) == str(caught.value)


def test_unreadable_files_are_named_through_workers(broken: Files) -> None:
    loader = DataLoader(ClassSubset(broken, transform=np.array), num_workers=1)
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg cannot be read as an image .*truncated"):
        next(iter(loader))


def test_errors_of_the_transform_pass_through(broken: Files) -> None:
    def transform(image: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        ClassSubset(broken, transform=transform)[3]


@pytest.mark.parametrize(
    ("queries", "gallery", "expected"),
    [
        ([0, 0, 1, 1], None, None),
        ([0, 0, 1, 2, 2, 5], None, "2 of 6 images of it have no image of their class to find, and do not count"),
        ([0, 0, 5], None, "1 of 3 images of it has no image of its class to find, and does not count"),
        ([0, 1, 2], [2, 2, 2, 1, 0], None),
        ([0, 1, 2], [2, 9], "2 of 3 images of it have no image of their class to find, and do not count"),
        ([3, 3], None, "all images of it are of one class: recall is 1 with any model"),
        ([3, 3], [3], "all images of it are of one class: recall is 1 with any model"),
        ([3, 3], [3, 4], None),
    ],
)
def test_notes_about_queries(queries: list[int], gallery: list[int] | None, expected: str | None) -> None:
    parts = [SimpleNamespace(labels=torch.tensor(labels)) for labels in (queries, gallery) if labels is not None]
    assert check_queries("it", *parts) == expected


@pytest.mark.parametrize(
    ("queries", "gallery", "message"),
    [
        (
            [0],
            None,
            r"it cannot be evaluated: none of its images \(1\) has another image of its class to find; expected a",
        ),
        ([0, 1, 5], None, r"none of its images \(3\) has another image"),
        ([0, 0], [1, 2], r"none of its images \(2\) has an image of its class in the gallery to find"),
    ],
)
def test_queries_with_nothing_to_find(queries: list[int], gallery: list[int] | None, message: str) -> None:
    parts = [SimpleNamespace(labels=torch.tensor(labels)) for labels in (queries, gallery) if labels is not None]
    with pytest.raises(ValueError, match=message):
        check_queries("it", *parts)

"""A user's own images: split already, with a transform, and with parts that are left out."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.picture_files import exif, jpeg
from PIL import Image
from torch.utils.data import DataLoader

from pml_gca.datasets import Benchmark, ClassFolder, load_benchmark, transforms
from pml_gca.datasets.folder_layout import read_folder

SPLITS = ("train", "val", "test")


def write(folder: Path, names: str, images: int = 2) -> None:
    """Write a class folder for each letter; all images of a class have its grey."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(images):
            Image.new("L", (12, 10), ord(name)).save(folder / name / f"{i}.png")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder that is split already."""
    for split, names in zip(SPLITS, ("abcd", "ef", "ghi"), strict=True):
        write(tmp_path / "given" / split, names)
    return tmp_path / "given"


def names_of(root: Path, **options: Any) -> dict[str, str]:
    """Return the classes of each split."""
    return {split: "".join(ClassFolder(root, split, image_size=8, **options).classes) for split in SPLITS}


def test_given_splits_are_kept(given: Path) -> None:
    assert names_of(given) == {"train": "abcd", "val": "ef", "test": "ghi"}
    data = ClassFolder(given, "test", image_size=8)
    assert [path.parent.parent.name for path in data.files] == ["test"] * 6
    assert [round(255 * float(image[0, 4, 4])) for image, _ in data] == [ord(name) for name in "gghhii"]


def test_without_val_some_training_classes_are_held_out(given: Path) -> None:
    shutil.rmtree(given / "val")
    found = names_of(given)
    assert found["test"] == "ghi"
    assert (len(found["train"]), len(found["val"])) == (2, 2)  # a fifth of them, but at least 2
    assert sorted(found["train"] + found["val"]) == list("abcd")
    assert any(names_of(given, seed=seed) != found for seed in (1, 2, 3))
    assert ClassFolder(given, "train", image_size=8, fractions=(0.5, 0.0, 0.5)).classes == list("abcd")
    with pytest.raises(ValueError, match="split 'val' is empty"):
        ClassFolder(given, "val", fractions=(0.5, 0.0, 0.5))


def test_options_without_effect_are_refused(given: Path) -> None:
    for option in ({"seed": 1}, {"fractions": (0.5, 0.25, 0.25)}):
        with pytest.raises(ValueError, match=r"fractions and seed have no effect on .*given, which has train, val and"):
            ClassFolder(given, "train", **option)  # type: ignore[arg-type]


def test_too_few_given_classes(given: Path) -> None:
    for name in "gh":
        shutil.rmtree(given / "test" / name)
    with pytest.raises(ValueError, match=r"test must hold at least 2 class folders, found 1"):
        ClassFolder(given, "test")


def test_a_class_in_two_splits_is_refused(given: Path) -> None:
    write(given / "test", "b")
    message = r"1 class folder of .*test is in another split, too: b; expected each class in one of train, val and test"
    for load in (ClassFolder, lambda root: load_benchmark("folder", root, train_transform=len, test_transform=len)):
        with pytest.raises(ValueError, match=message):
            load(given)


def test_classes_named_like_splits(tmp_path: Path) -> None:
    for name in ("train", "test", "bus", "car", "tram"):
        write(tmp_path, "x")
        (tmp_path / "x").rename(tmp_path / name)
    assert set(read_folder(tmp_path).files) == {"train", "test", "bus", "car", "tram"}
    for name in ("bus", "car", "tram"):
        shutil.rmtree(tmp_path / name)
    found = read_folder(tmp_path)  # images directly in them: they are classes
    assert (set(found.files), found.given) == ({"train", "test"}, None)


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("train", "valid", "test"), ("train", "val"), ("train", "test", "meta")]
)
def test_folders_that_are_nearly_split(names: tuple[str, ...], tmp_path: Path) -> None:
    for name, letters in zip(names, ("abcd", "efgh", "ij"), strict=False):
        write(tmp_path / name, letters)
    message = f"seems to be split already, but its folders are {', '.join(sorted(names))}; expected train, test and"
    for load in (ClassFolder, benchmark_of):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_too_few_classes_to_hold_some_out(given: Path) -> None:
    shutil.rmtree(given / "val")
    shutil.rmtree(given / "train" / "a")
    with pytest.raises(ValueError, match=r"train must hold at least 4 class folders, as some are held out .* found 3"):
        ClassFolder(given, "train")


def test_classes_one_level_too_deep(tmp_path: Path) -> None:
    write(tmp_path / "images", "abcdefgh")
    message = r"1 class cannot be split; at least 5 are needed \(2 for train, 1 for val, 2 for test\); 1 class folder "
    with pytest.raises(ValueError, match=message + "with images in subfolders.*put them directly into the data folder"):
        ClassFolder(tmp_path)


def benchmark_of(root: Path, **options: Any) -> Benchmark:
    return load_benchmark("folder", root, train_transform=np.asarray, test_transform=np.asarray, **options)


def test_benchmarks_hold_out_the_classes_of_val(given: Path) -> None:
    for fraction in (0.1, 0.6):
        found = benchmark_of(given, val_fraction=fraction)
        assert found.val is not None
        assert (found.train.classes, found.val.classes) == (list("abcd"), list("ef"))
    assert benchmark_of(given, val_fraction=0).train.classes == list("abcdef")
    assert found.test["test"].classes == list("ghi")
    shutil.rmtree(given / "val")
    held_out = benchmark_of(given)
    assert held_out.val is not None
    assert len(held_out.val.classes) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_gets_the_upright_picture_and_makes_the_item(workers: int, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 12) * 5
    for name in "abcde":
        (tmp_path / name).mkdir()
        turned = exif([(0x0112, 3, 1, b"\0\6\0\0")])
        (tmp_path / name / "0.jpg").write_bytes(jpeg(Image.fromarray(pixels.repeat(3, 1)), turned))
        Image.new("RGBA", (5, 7), (200, 0, 0, 0)).save(tmp_path / name / "1.png")
    data = ClassFolder(tmp_path, "test", transform=as_tensor)
    batches = list(DataLoader(data, batch_size=1, num_workers=workers))
    assert [tuple(images.shape[1:]) for images, _ in batches] == [(3, 36, 4), (3, 7, 5)] * data.num_classes
    assert (batches[1][0] == 255).all()  # transparent pixels are white
    assert [int(label) for _, label in batches] == data.labels.tolist()


def as_tensor(image: Any) -> torch.Tensor:
    """Check the type of a picture, and return its pixels."""
    assert (type(image).__module__, image.mode) == ("PIL.Image", "RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_transforms_of_torchvision_fit(given: Path) -> None:
    image, label = ClassFolder(given, "train", transform=transforms.train_transform(16))[3]
    assert (image.shape, image.dtype, label) == ((3, 16, 16), torch.float32, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": True}, "transform replaces augment: leave it out"),
        ({"in_memory": True, "augment": True}, "transform replaces augment, in_memory: leave them out"),
        ({"image_size": 32, "augment": True}, "transform replaces image_size, augment: leave them out"),
        ({"transform": "resize"}, "transform must be a function or None, got str"),
        ({"transform": Path}, r"transform must be a function, got the class Path\. Make one: Path\(\.\.\.\)"),
        ({"unreadable": "ignore"}, "unreadable must be stop or skip, got 'ignore'"),
    ],
)
def test_options_beside_a_transform(given: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ClassFolder(given, **{"transform": len, **options})


def test_a_file_that_a_transform_cannot_get_is_named(given: Path) -> None:
    data = ClassFolder(given, "train", transform=len, augment=False, in_memory=False)  # as it is anyway
    data.files[2].write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 1 image in .* cannot be read: train.b.0\.png"):
        data[2]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Class folders with unreadable files, one without a readable one, and two without any."""
    root = tmp_path / "spoilt"
    write(root, "abcdefgh", images=3)
    for file in [root / "b" / "1.png", *(root / "a").iterdir()]:
        file.write_text("no image")
    (root / "y").mkdir()
    (root / "z").mkdir()
    (root / "z" / "notes.txt").touch()
    return root


def test_skipped_files_and_folders_are_told_and_change_no_other_class(spoilt: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = names_of(spoilt, unreadable="skip")
    assert sorted("".join(found.values())) == list("bcdefgh")
    (message,) = {str(warning.message) for warning in caught}
    assert message.startswith(f"7 entries are left out of {spoilt}: ")
    for part in (
        "class folder without images (2): y, z",
        "cannot be read (UnidentifiedImageError) (4): a/0.png, a/1.png, a/2.png, b/1.png",
        "not named as an image that Pillow reads (1): z/notes.txt",
    ):
        assert part in message
    data = [ClassFolder(spoilt, split, image_size=8, unreadable="skip") for split in SPLITS]
    assert [len(part) for part in data] == [3 * len(names) - ("b" in names) for names in found.values()]
    whole = spoilt.parent / "whole"
    write(whole, "abcdefgh")
    assert {split: names.replace("a", "") for split, names in names_of(whole).items()} == found


def test_skipped_folders_of_a_benchmark(spoilt: Path) -> None:
    with pytest.raises(ValueError, match=r"2 class folders of .* hold no image: y, z .*unreadable='skip'"):
        benchmark_of(spoilt)
    with pytest.warns(UserWarning, match="left out"):
        found = benchmark_of(spoilt, unreadable="skip", val_fraction=0)
    assert sorted([*found.train.classes, *found.test["test"].classes]) == list("bcdefgh")


def test_a_split_without_readable_images(spoilt: Path) -> None:
    for folder in "abcdefgh":
        for file in (spoilt / folder).iterdir():
            file.write_text("no image")
    message = r"no image of the val split of .* can be read"
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=message):
        ClassFolder(spoilt, "val", unreadable="skip")


def test_no_folder_holds_an_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for unreadable in ("stop", "skip"):
        with pytest.raises(ValueError, match=r"1 class folder of .* holds no image: a") as raised:
            ClassFolder(tmp_path, unreadable=unreadable)
        assert ("give unreadable='skip'" in str(raised.value)) == (unreadable == "stop")


def test_notes_count_the_images_that_are_left(spoilt: Path) -> None:
    (spoilt / "b" / "0.png").write_text("no image")
    with pytest.warns(UserWarning, match="left out"):
        notes = ClassFolder(spoilt, "train", image_size=8, unreadable="skip").notes
    assert [note.partition(";")[0] for note in notes] == ["1 class of one image: b"]


def test_notes_name_subfolders_and_classes_of_one_image(given: Path) -> None:
    assert ClassFolder(given, "train", image_size=8).notes == []
    (given / "train" / "a" / "1.png").unlink()
    write(given / "test" / "h", "k")
    notes = ClassFolder(given, "train", image_size=8).notes
    assert [note.partition(";")[0] for note in notes] == [
        "1 class folder with images in subfolders, which count as images of the class folder: h (k)",
        "1 class of one image: a",
    ]
    assert benchmark_of(given).notes == notes

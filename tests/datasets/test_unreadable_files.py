import re
from pathlib import Path
from typing import Any

import pytest
from helpers.layouts import load, size_of, splits_of, write_cub, write_image
from PIL import Image

from pml_gca.datasets import UnreadableImageError, load_benchmark
from pml_gca.datasets.benchmarks import find_unreadable


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """CUB where a whole class, one more training image and two test images cannot be read."""
    write_cub(tmp_path, 6, 2)
    images = tmp_path / "CUB_200_2011" / "images"
    files = [*(images / "002.Some_Bird").iterdir(), *images.glob("004*/*_0000_*"), *images.glob("10[13]*/*_0000_*")]
    assert len(files) == 5
    for file in files:
        file.write_bytes(file.read_bytes()[:300])
    return tmp_path


def test_unreadable_files_stop(spoilt: Path) -> None:
    benchmark = load("cub", spoilt, val_fraction=0)
    assert benchmark.left_out == []
    assert benchmark.train.num_classes == 6
    test = benchmark.test["test"]
    row = next(i for i, file in enumerate(test.files) if "101.Some_Bird" in file)
    with pytest.raises(UnreadableImageError, match=re.escape(test.files[row])):
        test[row]


def test_unreadable_files_are_skipped(spoilt: Path) -> None:
    with pytest.warns(UserWarning, match="5 of 24 images of cub cannot be read and are left out") as caught:
        benchmark = load_benchmark(
            "cub", spoilt, val_fraction=0, unreadable="skip", train_transform=size_of, test_transform=size_of
        )
    assert caught[0].filename == __file__
    assert len(benchmark.left_out) == 5
    assert all(path in str(caught[0].message) for path in benchmark.left_out)
    assert benchmark.train.classes == [1, 3, 4, 5, 6]
    assert benchmark.train.labels.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    test = benchmark.test["test"]
    assert test.labels.tolist() == [0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    for dataset in (benchmark.train, test):
        assert [label for _, label in dataset] == dataset.labels.tolist()
        assert not set(benchmark.left_out) & set(dataset.files)


def test_skipping_does_not_change_the_held_out_classes(spoilt: Path) -> None:
    for seed in range(4):
        before = splits_of(load("cub", spoilt, val_fraction=0.5, seed=seed))
        with pytest.warns(UserWarning, match="left out"):
            after = splits_of(load("cub", spoilt, val_fraction=0.5, seed=seed, unreadable="skip"))
        for split in ("train", "val"):
            assert after[split].classes == [label for label in before[split].classes if label != 2]


def test_pictures_of_unknown_white_are_skipped(tmp_path: Path) -> None:
    write_cub(tmp_path, 3, 2)
    file = min((tmp_path / "CUB_200_2011" / "images").glob("102*/*"))
    Image.new("I", (9, 9), 70000).save(file, format="TIFF")
    with pytest.raises(ValueError, match=re.escape(f"{file} holds 32-bit integers, 70000 to 70000")):
        list(load_benchmark("cub", tmp_path, val_fraction=0, image_size=8).test["test"])
    with pytest.warns(UserWarning, match=rf"1 of 12 images .* left out: {file} \(UnknownRangeError: .* holds 32-bit"):
        benchmark = load_benchmark("cub", tmp_path, val_fraction=0, image_size=8, unreadable="skip")
    assert benchmark.left_out == [str(file)]
    assert len(list(benchmark.test["test"])) == 5
    assert load("cub", tmp_path, val_fraction=0, unreadable="skip").left_out == []  # one's own transforms may take it


def test_too_few_readable_classes(spoilt: Path) -> None:
    for file in (spoilt / "CUB_200_2011" / "images").glob("00[1-5]*/*"):
        file.write_bytes(b"")
    message = "the train split of cub in .* at least 2 classes with images, found 1"
    with pytest.warns(UserWarning, match="and 2 more"), pytest.raises(ValueError, match=message):
        load("cub", spoilt, val_fraction=0, unreadable="skip")


@pytest.mark.filterwarnings("error")
def test_nothing_to_skip(roots: dict[str, Path]) -> None:
    assert load("inshop", roots["inshop"], unreadable="skip").left_out == []


def test_progress_bar_for_many_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a.jpg", 0, 0, 8)

    class Repeated:
        def __init__(self, count: int) -> None:
            self.paths, self.labels = [f"{i}" for i in range(count)], [0] * count

        def __getitem__(self, index: int) -> Any:
            return Image.open(tmp_path / ("none.jpg" if index == 7 else "a.jpg")), 0

    for count, progress, shown in ((500, True, True), (499, True, False), (500, False, False)):
        assert list(find_unreadable([Repeated(count)], progress)) == ["7"]
        assert ("checking images" in capsys.readouterr().err) == shown

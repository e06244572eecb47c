import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.layouts import WRITERS, load, splits_of, write_cars196, write_cub, write_sop
from pytorch_metric_learning.datasets import CUB, Cars196, StanfordOnlineProducts

from pml_gca.datasets.benchmarks import BENCHMARKS


@pytest.mark.parametrize("name", ["cub", "cars196", "sop"])
def test_missing_label_files(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 4, 1, 8)
    end = r"expected the folder .* can download them, but only into a new or empty folder$"
    for file in BENCHMARKS[name].label_files:
        shutil.move(tmp_path / file, tmp_path / "aside")
        for download in (False, True):
            with pytest.raises(ValueError, match=rf"^{file} of {name} is missing in {tmp_path}; {end}"):
                load(name, tmp_path, download=download)
        shutil.move(tmp_path / "aside", tmp_path / file)
    load(name, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=", ".join(BENCHMARKS[name].label_files) + rf" .* mean {tmp_path}\?"):
        load(name, tmp_path / "empty")


def test_damaged_label_files(tmp_path: Path) -> None:
    cub, cars, sop = write_cub(tmp_path / "1", 4, 1, 8), write_cars196(tmp_path / "2", 4, 1), write_sop(tmp_path / "3")
    images = cub / "CUB_200_2011" / "images.txt"
    images.write_text("\n".join(images.read_text().splitlines()[:5]))
    with pytest.raises(ValueError, match=r"equally many lines, found 5 in .*images\.txt, 8 in .*image_class_labels"):
        load("cub", cub)
    (cars / "names.csv").write_text("one name\n")
    with pytest.raises(ValueError, match=r"of cars196 in .*names\.csv, .* cannot be understood \(IndexError"):
        load("cars196", cars)
    (sop / "Stanford_Online_Products" / "Ebay_test.txt").write_text("header\n<html>\n")
    with pytest.raises(ValueError, match=r"of sop in .* cannot be understood \(IndexError: "):
        load("sop", sop)


CUB_LABELS, CUB_IMAGES = "CUB_200_2011/image_class_labels.txt", "CUB_200_2011/images.txt"
SOP_TRAIN, SOP_TEST = (f"Stanford_Online_Products/Ebay_{split}.txt" for split in ("train", "test"))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "cub",
            CUB_LABELS,
            "\n3 2\n",
            "\n3 201\n",
            r"image_class_labels\.txt of cub in .* list 16 images, but only 15 have",
        ),
        ("cub", CUB_LABELS, "\n3 2\n", "\n3 0\n", "list 16 images, but only 15 have"),
        ("cub", CUB_LABELS, "\n3 2\n4 2\n", "\n4 2\n3 2\n", "list 16 images, but only 14 have"),
        ("cub", CUB_IMAGES, "\n3 ", "\n33 ", "list 16 images, but only 15 have"),
        (
            "cars196",
            "anno_train.csv",
            ",3\n",
            ",0\n",
            r"anno_train\.csv, anno_test\.csv of cars196 .* 16 images, but only 15 have",
        ),
        (
            "cub",
            CUB_IMAGES,
            "\n3 002",
            "\n3 /elsewhere/002",
            "1 of the 16 images of cub lie outside of .*: /elsewhere/002",
        ),
        ("cub", CUB_IMAGES, "\n3 002", "\n3 ../../../x/002", "1 of the 16 images of cub lie outside of .*x/002"),
        ("sop", SOP_TRAIN, " cabinet", " /cabinet", "of the 16 images of sop lie outside of .*: /cabinet"),
        ("cars196", "anno_test.csv", "00001.jpg", "/00001.jpg", "1 of the 16 images of cars196 lie outside of"),
        (
            "cub",
            CUB_IMAGES,
            "_0001_4.jpg",
            "_0000_3.jpg",
            "1 image of cub in .* listed more than once: .*_0000_3.jpg;",
        ),
        ("sop", SOP_TRAIN, "_1.JPG", "_0.JPG", "4 images of sop in .* listed more than once"),
        ("cars196", "anno_train.csv", "00002.jpg", "00001.jpg", "of the 16 images of cars196 are not in"),
        (
            "cub",
            CUB_LABELS,
            "1 1\n",
            "\ufeff1 1\n",
            r"image_class_labels\.txt of cub in .* starts with a byte order mark",
        ),
        ("cars196", "names.csv", "Make", "\ufeffMake", r"names\.csv of cars196 .* starts with a byte order mark"),
        ("cars196", "anno_test.csv", "00001", "\ufeff00001", "save it as UTF-8 without one"),
        ("cub", CUB_IMAGES, "Some_Bird/", "Some_B\udce4rd/", r"cannot be understood \(UnicodeDecodeError"),
        ("cub", CUB_IMAGES, "\n3 ", "\n\n3 ", r"cannot be understood \(ValueError"),
        ("sop", SOP_TEST, "\n12 ", "\n\n12 ", r"cannot be understood \(IndexError"),
        ("cars196", "names.csv", "Make C/V Model 2 ", "\nMake C/V Model 2 ", "of the 16 images of cars196 are not in"),
    ],
)
def test_inconsistent_label_files(tmp_path: Path, name: str, file: str, old: str, new: str, message: str) -> None:
    WRITERS[name](tmp_path, 4, 2, 8)
    text = (tmp_path / file).read_text()
    assert old in text
    count = -1 if name == "sop" else 1
    (tmp_path / file).write_bytes(text.replace(old, new, count).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "inshop"])
def test_label_files_of_other_editors(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 4, 2, 8)
    expected = {split: part.files for split, part in splits_of(load(name, tmp_path)).items()}
    for file in (path for path in tmp_path.rglob("*") if path.suffix in (".txt", ".csv")):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    if name == "sop":  # whose first line is not read
        (tmp_path / SOP_TRAIN).write_bytes(b"\xef\xbb\xbf" + (tmp_path / SOP_TRAIN).read_bytes())
    assert {split: part.files for split, part in splits_of(load(name, tmp_path)).items()} == expected


@pytest.mark.parametrize("name", ["sop", "inshop"])
def test_classes_of_both_halves_are_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 4, 2, 8)
    if name == "sop":
        lines = (tmp_path / SOP_TEST).read_text().replace(" 5 2 ", " 4 2 ")
        (tmp_path / SOP_TEST).write_text(lines)
    else:
        partition = tmp_path / "Eval" / "list_eval_partition.txt"
        lines = partition.read_text().replace("id_00000002  ", "id_00000001  ")
        partition.write_text(lines)
    message = f"1 class of {name} in .* both to train and to test on: {4 if name == 'sop' else 1}; expected none"
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_too_few_classes(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 3, 2, 8)
    with pytest.raises(
        ValueError, match=f"the train split of {name} in .* at least 4 classes.*found 3; with none held"
    ):
        load(name, tmp_path)
    assert load(name, tmp_path, val_fraction=0).train.num_classes == 3
    shutil.rmtree(tmp_path)
    WRITERS[name](tmp_path, 1, 2, 8)
    expected = f"^{tmp_path} must hold at least 4 class folders, found 2" if name == "folder" else "2 classes .*found 1"
    with pytest.raises(ValueError, match=expected):
        load(name, tmp_path, val_fraction=0)


def test_download_is_passed_to_pml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dataset_class in (("cub", CUB), ("cars196", Cars196), ("sop", StanfordOnlineProducts)):

        def fetch(self: Any, name: str = name) -> None:
            WRITERS[name](Path(self.root), 4, 1, 8)

        monkeypatch.setattr(dataset_class, "download_and_remove", fetch)
        (tmp_path / "empty" / name).mkdir(parents=True)
        for root in (tmp_path / "new" / name, tmp_path / "empty" / name):
            assert len(load(name, root, download=True).test["test"]) == 4
        monkeypatch.setattr(dataset_class, "download_and_remove", None)
        assert len(load(name, root, download=True).test["test"]) == 4  # it is there


def test_download_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    for root in (tmp_path / "new", roots["inshop"]):
        with pytest.raises(
            ValueError, match=r"^In-shop cannot be downloaded automatically.*img\.zip.*InShopRetrieval\.html"
        ):
            load("inshop", root, download=True)
    with pytest.raises(ValueError, match=r"^'folder' stands for your own images, which cannot be downloaded$"):
        load("folder", tmp_path / "new", download=True)
    assert not (tmp_path / "new").exists()

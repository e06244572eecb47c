import hashlib
import os
import pickle
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layouts import WRITERS, write_cars196, write_cub, write_folder, write_image, write_sop
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pytorch_metric_learning.datasets import CUB, Cars196, StanfordOnlineProducts
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester

from pml_gca.datasets import Benchmark, ClassSubset, UnreadableImageError, load_benchmark
from pml_gca.datasets.benchmarks import BENCHMARKS, find_unreadable, hold_out_classes
from pml_gca.datasets.data_root import missing_images
from pml_gca.datasets.splits import split_classes
from pml_gca.paper.recipes import RECIPES
from pml_gca.utils import RecallCalculator

CLASSES, PER_CLASS = 6, 4
TRAINING = {
    "cub": [1, 2, 3, 4, 5, 6],
    "cars196": [1, 2, 3, 4, 5, 6],
    "sop": [1, 2, 3, 4, 5, 6],
    "inshop": [1, 3, 5, 7, 9, 11],
    "folder": [f"class {i}" for i in (0, 10, 2, 6, 7, 8)],
}
TESTING = {
    "cub": [101, 102, 103, 104, 105, 106],
    "cars196": [99, 100, 101, 102, 103, 104],
    "sop": [7, 8, 9, 10, 11, 12],
    "inshop": [2, 4, 6, 8, 10, 12],
    "folder": [f"class {i}" for i in (1, 11, 3, 4, 5, 9)],
}


def raw_label(name: str, path: str) -> int | str:
    """The class of a file of ``layouts``, by its path alone."""
    folder, file = Path(path).parent.name, Path(path).name
    if name == "cub":
        return int(folder[:3])
    if name == "cars196":
        return int(folder.split()[-2])
    if name == "sop":
        return int(file.split("_")[0]) - 110000
    return int(folder[3:]) if name == "inshop" else folder


def size_of(image: Any) -> Any:
    return image.size


def load(name: str, root: Path, **arguments: Any) -> Benchmark:
    """Without torchvision, so that images keep their sizes."""
    return load_benchmark(name, root, **{"train_transform": size_of, "test_transform": size_of, **arguments})


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("roots")
    return {name: write(folder / name, CLASSES, PER_CLASS) for name, write in WRITERS.items()}


def splits_of(benchmark: Benchmark) -> dict[str, ClassSubset]:
    assert benchmark.val is not None
    return {"train": benchmark.train, "val": benchmark.val, **benchmark.test}


def test_there_is_one_for_each_recipe() -> None:
    assert {recipe.dataset for recipe in RECIPES.values()} == set(BENCHMARKS) - {"folder"}
    assert set(WRITERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", WRITERS)
def test_splits(roots: dict[str, Path], name: str) -> None:
    benchmark = load(name, roots[name])
    assert benchmark.name == name
    assert benchmark.left_out == []
    splits = splits_of(benchmark)
    assert splits["train"].num_classes == 4
    assert splits["val"].num_classes == 2
    assert sorted(splits["train"].classes + splits["val"].classes) == sorted(TRAINING[name])
    assert list(benchmark.test) == (["query", "gallery"] if name == "inshop" else ["test"])
    for split, dataset in splits.items():
        assert len(dataset) == dataset.num_classes * (PER_CLASS // 2 if split in ("query", "gallery") else PER_CLASS)
        assert dataset.num_classes == len(dataset.classes)
        assert [dataset.classes[k] for k in dataset.labels] == [raw_label(name, file) for file in dataset.files]
        assert sorted(set(dataset.labels.tolist())) == list(range(dataset.num_classes))
        assert all(label == dataset.labels[i] for i, (_, label) in enumerate(dataset))
        if split not in ("train", "val"):
            assert dataset.classes == sorted(TESTING[name])


@pytest.mark.parametrize("name", WRITERS)
def test_images_of_every_mode(roots: dict[str, Path], name: str) -> None:
    splits = splits_of(load_benchmark(name, roots[name], image_size=16))
    modes = {split: {Image.open(file).mode for file in dataset.files} for split, dataset in splits.items()}
    assert set.union(*modes.values()) == {"RGB", "L", "P", "RGBA", "CMYK"}
    for split, dataset in splits.items():
        for image, label in dataset:
            assert image.shape == (3, 16, 16)
            assert image.dtype == torch.float32
            assert type(label) is int
        assert torch.equal(dataset[0][0], dataset[0][0]) == (split != "train")  # train alone is augmented


def test_recall_at() -> None:
    assert {name: source.recall_at for name, source in BENCHMARKS.items()} == {
        "cub": (1, 2, 4, 8),
        "cars196": (1, 2, 4, 8),
        "sop": (1, 10, 100, 1000),
        "inshop": (1, 10, 20, 30, 40, 50),
        "folder": (1, 2, 4, 8),
    }


@pytest.mark.parametrize("name", ["cub", "inshop"])
def test_pml_testers_take_it(roots: dict[str, Path], name: str) -> None:
    benchmark = load_benchmark(name, roots[name], image_size=16)
    tester = GlobalEmbeddingSpaceTester(
        accuracy_calculator=RecallCalculator(recall_at=benchmark.recall_at[:1], include=("recall_at_1",)),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    for _ in range(2):
        splits = benchmark.splits_to_eval
        scores = tester.test(dict(benchmark.test), 0, torch.nn.Flatten(), splits_to_eval=splits)
        split = next(iter(benchmark.test))
        assert scores[split]["recall_at_1_level0"] > 0.5  # chance is 1/6
        if splits is not None:
            splits[0][1].append("test")  # must not reach the next
    assert benchmark.splits_to_eval == ([("query", ["gallery"])] if name == "inshop" else None)


def test_query_and_gallery_agree_where_one_lacks_a_class(tmp_path: Path) -> None:
    folder = WRITERS["inshop"](tmp_path, 4, 2)
    partition = folder / "Eval" / "list_eval_partition.txt"
    lines = partition.read_text().splitlines()
    rows = [line for line in lines[2:] if not ("id_00000004" in line and "query" in line)]
    partition.write_text("\n".join([str(len(rows)), lines[1], *rows]))
    test = load("inshop", tmp_path).test
    assert test["query"].classes == test["gallery"].classes == [2, 4, 6, 8]
    assert test["query"].labels.tolist() == [0, 2, 3]
    assert test["gallery"].labels.tolist() == [0, 1, 2, 3]


@given(
    labels=st.one_of(
        st.lists(st.integers(0, 10**6), min_size=4, max_size=60, unique=True),
        st.lists(st.text(max_size=3), min_size=4, max_size=60, unique=True),
    ),
    fraction=st.floats(1e-6, 0.999),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_held_out_classes(labels: list[Any], fraction: float, seed: int, data: st.DataObject) -> None:
    class Rows:
        def __init__(self, order: list[Any]) -> None:
            self.labels, self.paths = order, [str(i) for i in range(len(order))]

        def __getitem__(self, index: int) -> Any: ...

    train, val = hold_out_classes(Rows(labels), fraction, seed, {}, "it")
    assert sorted(train + val) == sorted(labels)
    assert min(len(train), len(val)) >= 2
    wanted = min(max(round(fraction * len(labels)), 2), len(labels) - 2)
    assert len(val) == wanted
    by_digest = sorted(labels, key=lambda label: hashlib.sha256(f"{seed}:{label}".encode()).digest())
    assert set(val) == set(by_digest[-wanted:])
    # Neither the order of the rows nor the number of images of a class matters.
    rows = data.draw(st.permutations(labels)) + data.draw(st.lists(st.sampled_from(labels), max_size=5))
    assert hold_out_classes(Rows(rows), fraction, seed, {}, "it") == (train, val)


def test_seed_and_fraction(roots: dict[str, Path]) -> None:
    for name in ("cub", "folder"):
        held = [load(name, roots[name], seed=seed) for seed in range(6)]
        assert len({tuple(splits_of(b)["val"].classes) for b in held}) > 1
        assert all(b.test["test"].files == held[0].test["test"].files for b in held)
    assert splits_of(load("cub", roots["cub"], val_fraction=0.5))["val"].num_classes == 3
    whole = load("cub", roots["cub"], val_fraction=0)
    assert whole.val is None
    assert whole.train.classes == TRAINING["cub"]


def test_own_folder_is_halved_by_the_rule_of_splits(tmp_path: Path) -> None:
    benchmark = load("folder", write_folder(tmp_path, 2, 2), val_fraction=0.0)
    names = [f"class {i}" for i in range(4)]
    halves = [[names[i] for i in split_classes(names, split, (0.5, 0.0, 0.5), 0)] for split in ("train", "test")]
    assert [benchmark.train.classes, benchmark.test["test"].classes] == halves


def test_own_photographs_are_turned_upright(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    for folder in tmp_path.iterdir():
        Image.new("RGB", (40, 10)).save(folder / "sideways.jpg", exif=exif)
    train = load("folder", tmp_path, val_fraction=0).train
    assert {train[i][0] for i, file in enumerate(train.files) if "sideways" in file} == {(10, 40)}


def test_given_transforms_replace_the_defaults(roots: dict[str, Path]) -> None:
    made = load_benchmark(
        "cub", roots["cub"], train_transform=lambda image: "train", test_transform=lambda image: "test"
    )
    assert [(name, dataset[0][0]) for name, dataset in splits_of(made).items()] == [
        ("train", "train"),
        ("val", "test"),
        ("test", "test"),
    ]


def test_goes_to_spawned_workers(roots: dict[str, Path]) -> None:
    for name, root in roots.items():
        for split, dataset in splits_of(load_benchmark(name, root, image_size=16)).items():
            again = pickle.loads(pickle.dumps(dataset))
            assert again[1][1] == dataset[1][1]
            assert split == "train" or torch.equal(again[1][0], dataset[1][0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cars"}, ValueError, r"no benchmark is called 'cars' \(did you mean cars196\?\); .* cub, cars196, "),
        ({"name": "x"}, ValueError, "no benchmark is called 'x'; there are cub, cars196, sop, inshop, folder"),
        ({"name": 1}, TypeError, "name must be a str, found int: 1"),
        ({"root": None}, TypeError, "root must be a path, found NoneType"),
        ({"val_fraction": 1.0}, ValueError, r"val_fraction must lie in \[0, 1\), found 1.0"),
        ({"val_fraction": -0.1}, ValueError, "found -0.1"),
        ({"val_fraction": float("nan")}, ValueError, "found nan"),
        ({"val_fraction": "0.1"}, TypeError, "val_fraction must be a number, found str: '0.1'"),
        ({"val_fraction": True}, TypeError, "val_fraction must be a number, found bool"),
        ({"unreadable": "ignore"}, ValueError, r"unreadable must be one of \('stop', 'skip'\), found 'ignore'"),
        ({"image_size": 4}, ValueError, r"image_size must lie in \[8, 1024\], found 4"),
        ({"image_size": "224"}, TypeError, "image_size must be an int, found str"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"train_transform": 3}, TypeError, "train_transform must be a function or None, found int: 3"),
        ({"test_transform": "x"}, TypeError, "test_transform must be a function or None, found str"),
    ],
)
def test_bad_arguments(roots: dict[str, Path], arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(**{"name": "cub", "root": roots["cub"], **arguments})


@pytest.mark.parametrize("name", WRITERS)
def test_roots_that_are_no_folder(roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"root must be .*[,;] found nothing at {tmp_path}/gone; .*expected"):
        load(name, tmp_path / "gone")
    file = tmp_path / "file"
    file.write_text("")
    for download in (False, True):
        message = "download" if download and name in ("inshop", "folder") else rf"root must be .*found a file at {file}"
        with pytest.raises(ValueError, match=message):
            load(name, file, download=download)
    assert list(tmp_path.iterdir()) == [file]


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


def test_one_level_off(roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, inner in (
        ("cub", "CUB_200_2011"),
        ("cub", "CUB_200_2011/images"),
        ("cars196", "car_data"),
        ("cars196", "car_data/car_data"),
        ("sop", "Stanford_Online_Products"),
        ("inshop", "Img"),
    ):
        with pytest.raises(ValueError, match=rf"\(did you mean {roots[name]}\?\)"):
            load(name, roots[name] / inner)
    for name in ("cub", "cars196", "sop", "inshop"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).symlink_to(roots[name])
        with pytest.raises(ValueError, match=rf"\(did you mean {tmp_path}/{name}/{name}\?\)"):
            load(name, tmp_path / name)
    monkeypatch.chdir(roots["cub"] / "CUB_200_2011")
    with pytest.raises(ValueError, match=rf"mean {roots['cub']}\?"):
        load("cub", Path())
    with pytest.raises(ValueError, match=r"is missing in [^(]*; expected"):
        load("cub", roots["cars196"])


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "inshop"])
def test_missing_images(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 4, 2, 8)
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".JPG"))
    gone = [*files[:2], files[-1]]
    for file in gone:
        file.unlink()
    with pytest.raises(ValueError, match=f"^3 of the 16 images of {name} are not in {tmp_path}: ") as caught:
        load(name, tmp_path)
    assert all(str(file) in str(caught.value) for file in gone)
    for file in files[2:-1]:
        file.unlink()
    shutil.rmtree(files[0].parent)
    with pytest.raises(ValueError, match=r"^16 of the 16 images .* and 11 more; expected"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "inshop"])
def test_only_the_images_to_test_on_are_looked_at(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 6, 2)
    whole = splits_of(load(name, tmp_path))
    for split in ("train", "val"):
        for file in whole[split].files:
            os.truncate(file, 300)
        os.remove(whole[split].files[0])
    with pytest.raises(ValueError, match=f"^2 of the 24 images of {name} are not in"):
        load(name, tmp_path)
    for unreadable in ("stop", "skip"):
        benchmark = load(name, tmp_path, unreadable=unreadable, check_train=False)
        assert benchmark.left_out == []
        for split, dataset in splits_of(benchmark).items():
            assert dataset.files == whole[split].files
            assert dataset.labels.tolist() == whole[split].labels.tolist()
        with pytest.raises(UnreadableImageError, match="No such file"):
            benchmark.train[0]
    gone, *test = (file for part in benchmark.test.values() for file in part.files)
    os.truncate(test[-1], 300)
    with pytest.warns(UserWarning, match=f"^1 of 12 images of {name} cannot be read and are left out: {test[-1]}"):
        assert load(name, tmp_path, unreadable="skip", check_train=False).left_out == [test[-1]]
    os.remove(gone)
    with pytest.raises(ValueError, match=f"^1 of the 12 images of {name} are not in {tmp_path}: {gone}"):
        load(name, tmp_path, check_train=False)


def test_looking_for_images_lists_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(50):
            (tmp_path / folder / f"{i}.jpg").touch()
    paths = [str(tmp_path / folder / f"{i}.jpg") for i in range(51) for folder in "abc"]
    listed, real = [], os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: listed.append(path) or real(path))
        patch.setattr(os, "stat", None)
        missing = missing_images(paths)
    assert missing == [p for p in paths if Path(p).parent.name == "c" or p.endswith("50.jpg")]
    assert sorted(listed) == [str(tmp_path / folder) for folder in "abc"]


def test_spoilt_label_files(tmp_path: Path) -> None:
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
            r"image_class_labels\.txt of cub in .* list 16 images, but 15 are of",
        ),
        ("cub", CUB_LABELS, "\n3 2\n", "\n3 0\n", "list 16 images, but 15 are"),
        ("cub", CUB_LABELS, "\n3 2\n4 2\n", "\n4 2\n3 2\n", "list 16 images, but 14 are"),
        ("cub", CUB_IMAGES, "\n3 ", "\n33 ", "list 16 images, but 15 are"),
        (
            "cars196",
            "anno_train.csv",
            ",3\n",
            ",0\n",
            r"anno_train\.csv, anno_test\.csv of cars196 .* 16 images, but 15 are",
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
            "1 images of cub in .* are listed more than once: .*_0000_3.jpg;",
        ),
        ("sop", SOP_TRAIN, "_1.JPG", "_0.JPG", "4 images of sop in .* are listed more than once"),
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
def test_label_files_that_mislead(tmp_path: Path, name: str, file: str, old: str, new: str, message: str) -> None:
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
    message = f"1 classes of {name} in .* are both to train and to test on: {4 if name == 'sop' else 1}; expected none"
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


def test_links_that_lead_nowhere_are_missing(tmp_path: Path) -> None:
    write_cub(tmp_path, 4, 1, 8)
    broken, circle, folder, good = sorted((tmp_path / "CUB_200_2011" / "images").rglob("*.jpg"))[:4]
    for file, target in ((broken, "nowhere"), (circle, circle.name), (good, None)):
        content = file.read_bytes()
        file.unlink()
        if target is None:
            (tmp_path / "kept.jpg").write_bytes(content)
        os.symlink(target or tmp_path / "kept.jpg", file)
    folder.unlink()
    folder.mkdir()
    with pytest.raises(ValueError, match=r"^3 of the 8 images of cub are not in") as caught:
        load("cub", tmp_path)
    assert all(str(file) in str(caught.value) for file in (broken, circle, folder))


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


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """CUB with a whole class, one more image to train on and two to test on that cannot be read."""
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
        benchmark = load("cub", spoilt, val_fraction=0, unreadable="skip")
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


def test_skipping_does_not_change_what_is_held_out(spoilt: Path) -> None:
    for seed in range(4):
        before = splits_of(load("cub", spoilt, val_fraction=0.5, seed=seed))
        with pytest.warns(UserWarning, match="left out"):
            after = splits_of(load("cub", spoilt, val_fraction=0.5, seed=seed, unreadable="skip"))
        for split in ("train", "val"):
            assert after[split].classes == [label for label in before[split].classes if label != 2]


def test_wide_pictures_without_a_white_are_skipped(tmp_path: Path) -> None:
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


def test_too_few_classes_can_be_read(spoilt: Path) -> None:
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


def test_imports_without_pillow_and_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("pml_gca", "pytorch_metric_learning", "PIL", "torchvision")
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("PIL", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # the import system's sign for a missing module
    datasets = import_module("pml_gca.datasets")
    assert datasets.ClassSubset is not ClassSubset  # imported anew
    message = r"PIL\.Image cannot be imported .* pip install 'pml-gca\[images\]'"
    with pytest.raises(ImportError, match=message):
        _ = datasets.InShop
    with pytest.raises(ImportError, match=message):
        datasets.load_benchmark("cub", ".")
    with pytest.raises(AttributeError, match=r"module 'pml_gca\.datasets' has no attribute 'Inshop'"):
        _ = datasets.Inshop

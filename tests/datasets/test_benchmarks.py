import hashlib
import pickle
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layouts import PER_CLASS, WRITERS, load, splits_of, write_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester

from pml_gca.datasets import ClassSubset, load_benchmark
from pml_gca.datasets.benchmarks import BENCHMARKS, hold_out_classes
from pml_gca.datasets.splits import split_classes
from pml_gca.paper.recipes import RECIPES
from pml_gca.utils import RecallCalculator

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
    """The class of a file of `layouts`, from its path."""
    folder, file = Path(path).parent.name, Path(path).name
    if name == "cub":
        return int(folder[:3])
    if name == "cars196":
        return int(folder.split()[-2])
    if name == "sop":
        return int(file.split("_")[0]) - 110000
    return int(folder[3:]) if name == "inshop" else folder


def test_there_is_a_benchmark_for_each_recipe() -> None:
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


def test_own_folder_is_halved_by_split_classes(tmp_path: Path) -> None:
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


def test_data_sets_can_be_pickled(roots: dict[str, Path]) -> None:
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
        ({"unreadable": "ignore"}, ValueError, "unreadable must be stop or skip, got 'ignore'"),
        ({"unreadable": 5}, TypeError, "unreadable must be a string, got int"),
        ({"input_config": 5}, TypeError, "input_config must be an InputConfig, found int: 5"),
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


def test_imports_without_pillow_and_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("pml_gca", "pytorch_metric_learning", "PIL", "torchvision")
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("PIL", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # the import system's sign for a missing module
    datasets = import_module("pml_gca.datasets")
    assert datasets.ClassSubset is not ClassSubset  # imported again
    message = r"PIL\.Image cannot be imported .* pip install 'pml-gca\[images\]'"
    with pytest.raises(ImportError, match=message):
        _ = datasets.InShop
    with pytest.raises(ImportError, match=message):
        datasets.load_benchmark("cub", ".")
    with pytest.raises(AttributeError, match=r"module 'pml_gca\.datasets' has no attribute 'Inshop'"):
        _ = datasets.Inshop

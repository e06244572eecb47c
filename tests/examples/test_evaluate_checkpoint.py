import json
import os
import shutil
from dataclasses import replace

import evaluate_checkpoint
import pytest
import torch
from helpers.layouts import write_cub, write_inshop
from PIL import Image

from pml_gca import GlobalCorrelationGenerator
from pml_gca.datasets import load_benchmark
from pml_gca.paper import recipes
from pml_gca.paper.backbones import build_backbone, build_head
from pml_gca.paper.checkpoints import published_state_dict

TINY = replace(
    recipes.RESNET50_CUB, name="tiny", backbone="test_resnet", embedding_size=2, num_layers=1, num_heads=2, frozen=None
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set of 2 x 6 classes, and a checkpoint of an untrained network."""
    root = tmp_path_factory.mktemp("files")
    write_cub(root / "cub")
    write_inshop(root / "inshop")
    torch.manual_seed(0)
    trunk = build_backbone(TINY.backbone, pretrained=False)
    embedder = build_head(trunk.num_features, 2)
    with torch.no_grad():
        trunk.train()(torch.randn(16, 3, 32, 32))  # statistics that are not those of a new network
    generator = GlobalCorrelationGenerator(3, 2, num_layers=1, num_heads=2)
    torch.save(published_state_dict(trunk, embedder, generator, TINY), root / "tiny.pth")
    return root, trunk.eval(), embedder.eval()


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch):
    for recipe in (TINY, replace(TINY, name="tiny_inshop", dataset="inshop")):
        monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def arguments(root, **changed):
    given = {
        "checkpoint": root / "tiny.pth",
        "recipe": "tiny",
        "data-root": root / "cub",
        "image-size": 32,
        "workers": 0,
    }
    given |= changed
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]


def by_hand(trunk, embedder, dataset):
    """Recall@K, MAP@R and R-precision, query by query."""
    with torch.no_grad():
        found = torch.cat([embedder(trunk(dataset[i][0][None])) for i in range(len(dataset))])
    found = torch.nn.functional.normalize(found)
    labels = torch.tensor([dataset[i][1] for i in range(len(dataset))])
    metrics = {name: [] for name in ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map", "precision")}
    for query in range(len(found)):
        distances = (found - found[query]).norm(dim=1)
        distances[query] = float("inf")
        hits = labels[distances.argsort()] == labels[query]
        relevant = int((labels == labels[query]).sum()) - 1
        for k in (1, 2, 4, 8):
            metrics[f"recall_at_{k}"].append(float(hits[:k].any()))
        first = hits[:relevant].float()
        metrics["precision"].append(float(first.mean()))
        metrics["map"].append(float((first * first.cumsum(0) / torch.arange(1, relevant + 1)).sum()) / relevant)
    return [sum(values) / len(values) for values in metrics.values()]


def test_table_and_file_of_a_checkpoint(files, tmp_path, capsys):
    root, trunk, embedder = files
    out = tmp_path / "figures.json"
    evaluate_checkpoint.main([*arguments(root, out=out), "--batch-size", "7"])
    printed = capsys.readouterr().out
    lines = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0]][1:] == [
        *(f"Recall@{k}" for k in (1, 2, 4, 8)),
        "MAP@R",
        "R-precision",
    ]
    expected = by_hand(trunk, embedder, load_benchmark("cub", root / "cub", image_size=32).test["test"])
    assert 0 < expected[0] < 1
    assert lines[2][0].strip() == "tiny.pth"
    assert [cell.strip() for cell in lines[2]][1:] == [f"{100 * value:.1f}" for value in expected]
    assert "tiny, unseen classes (24 images to test), in percent" in printed

    written = json.loads(out.read_text())
    names = [*(f"recall_at_{k}" for k in (1, 2, 4, 8)), "mean_average_precision_at_r", "r_precision"]
    assert list(written["metrics"]) == names
    assert list(written["metrics"].values()) == pytest.approx(expected)
    assert (written["recipe"], written["checkpoint"], written["image_size"]) == ("tiny", "tiny.pth", 32)
    assert written["images"] == {"test": 24}
    assert written["left_out"] == []


def test_queries_of_in_shop_search_the_gallery(files, capsys):
    root = files[0]
    evaluate_checkpoint.main(arguments(root, **{"recipe": "tiny_inshop", "data-root": root / "inshop"}))
    printed = capsys.readouterr().out
    assert "tiny_inshop, unseen classes (12 images to query, 12 images to gallery), in percent" in printed
    assert "| Recall@1 | Recall@10 | Recall@20 | Recall@30 | Recall@40 | Recall@50 | MAP@R | R-precision |" in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": "resnet50_cup"}, "--recipe: no recipe is called 'resnet50_cup' (did you mean resnet50_cub?)"),
        ({"recipe": "resnet50_cup"}, "googlenet_cars196"),
        (
            {"recipe": "googlenet_cub"},
            "not a published checkpoint of the recipe googlenet_cub; missing: feature_extractor",
        ),
        ({"checkpoint": "nowhere.pth"}, "--checkpoint: there is no file nowhere.pth"),
        ({"checkpoint": __file__}, "test_evaluate_checkpoint.py is not a complete file of torch.save"),
        ({"data-root": "nowhere"}, "--data-root: "),
        ({"data-root": "d" * 300}, "--data-root: "),
        ({"device": "cuda"}, "--device: device is 'cuda', but torch finds no GPU"),
        ({"device": "cuda:1"}, "--device: device is 'cuda:1', but torch finds no GPU"),
        ({"device": "abacus"}, "--device: device must be cpu, cuda, cuda:1 or the like, got 'abacus'"),
        ({"unreadable": "ignore"}, "argument --unreadable: invalid choice: 'ignore'"),
        ({"batch-size": 0}, "--batch-size must be at least 1, got 0"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"image-size": 8}, "--image-size must be at least 32, got 8"),
        ({"image-size": 1025}, "--image-size must be at most 1024, got 1025"),
        ({"out": "nowhere/figures.json"}, "--out must name a file in a folder that exists"),
    ],
)
def test_wrong_arguments_are_explained(files, changed, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate_checkpoint.main(arguments(files[0], **changed))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: ")
    assert message in error


@pytest.mark.parametrize(("name", "training"), [("cub", "00?.Some_Bird"), ("inshop", "id_*[13579]")])
def test_training_images_are_not_needed(name, training, files, tmp_path, capsys):
    root = shutil.copytree(files[0] / name, tmp_path / name)
    folders = list(root.rglob(training))
    assert len(folders) == 6
    for folder in folders:
        shutil.rmtree(folder)
    recipe = {"cub": "tiny", "inshop": "tiny_inshop"}[name]
    printed = set()
    for data_root in (files[0] / name, root):
        for unreadable in ("stop", "skip"):
            given = {"recipe": recipe, "data-root": data_root, "unreadable": unreadable}
            evaluate_checkpoint.main(arguments(files[0], **given))
            printed.add(capsys.readouterr().out)
    assert len(printed) == 1
    assert "Recall@1" in printed.pop()


def test_images_that_cannot_be_read(files, tmp_path, capsys):
    root = shutil.copytree(files[0] / "cub", tmp_path / "cub")
    train, *test = (str(min(root.rglob(f"{label}.Some_Bird/*"))) for label in ("001", "101", "102"))
    for file in (train, *test):
        os.truncate(file, 300)
    given = arguments(files[0], **{"data-root": root})
    with pytest.raises(SystemExit, match=f"^evaluate_checkpoint.py: {test[0]} cannot be read as an image"):
        evaluate_checkpoint.main(given)
    out = tmp_path / "figures.json"
    with pytest.warns(UserWarning, match="2 of 24 images of cub cannot be read and are left out"):
        evaluate_checkpoint.main([*given, "--unreadable", "skip", "--out", str(out)])
    assert "(22 images to test; 2 that cannot be read are left out)" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert (written["images"], written["left_out"]) == ({"test": 22}, test)


def test_images_of_unknown_white_and_classes_of_one_image(files, tmp_path):
    root = shutil.copytree(files[0] / "cub", tmp_path / "cub")
    given = arguments(files[0], **{"data-root": root})
    wide = min(root.rglob("101.Some_Bird/*"))
    Image.new("I", (9, 9), 70000).save(wide, format="TIFF")
    with pytest.raises(SystemExit, match=f"^evaluate_checkpoint.py: {wide} holds 32-bit integers"):
        evaluate_checkpoint.main(given)
    listed = root / "CUB_200_2011"
    lines = [line for line in (listed / "images.txt").read_text().splitlines() if "_0000_" in line]
    numbers = {line.split()[0] for line in lines}
    labels = [x for x in (listed / "image_class_labels.txt").read_text().splitlines() if x.split()[0] in numbers]
    (listed / "images.txt").write_text("\n".join(lines))
    (listed / "image_class_labels.txt").write_text("\n".join(labels))
    with pytest.raises(
        SystemExit, match=r"^evaluate_checkpoint.py: the test set of cub cannot be evaluated: none of its"
    ):
        evaluate_checkpoint.main(given)


def test_workers_and_devices_by_their_names(files, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(evaluate_checkpoint, "evaluate", lambda *parts, **named: given.append(named) or {"r": 0.5})
    plain = arguments(files[0])
    where = plain.index("--workers")
    evaluate_checkpoint.main(plain[:where] + plain[where + 2 :])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cpu", "cuda", "cuda:1"):
        evaluate_checkpoint.main([*plain, "--device", name])
    assert given[0]["workers"] == min(os.cpu_count(), 8)
    assert [str(named["device"]) for named in given] == ["cpu", "cuda", "cpu", "cuda", "cuda:1"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluate_checkpoint.main([*plain, "--device", "cuda:2"])
    assert "--device: device is 'cuda:2', but torch finds 2 GPUs, numbered from 0" in capsys.readouterr().err


def test_errors_of_the_file_system(files, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(evaluate_checkpoint, "write_json", full)
    with pytest.raises(SystemExit, match=r"^evaluate_checkpoint\.py: .*No space left on device: '.*figures\.json'"):
        evaluate_checkpoint.main(arguments(files[0], out=tmp_path / "figures.json"))
    with pytest.raises(SystemExit) as stopped:
        evaluate_checkpoint.main(arguments(files[0], checkpoint="c" * 300))
    assert stopped.value.code not in (0, None)


def test_help_names_recipes_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate_checkpoint.main(["--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "one of resnet50_cub, resnet50_cars196" in printed
    assert "images per batch (default: 256)" in printed
    assert "in percent, as a Markdown table" in printed

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import write_cub, write_inshop

from pml_gca import GlobalCorrelationGenerator, recipes
from pml_gca.backbones import build_backbone, build_head
from pml_gca.checkpoints import published_state_dict
from pml_gca.datasets import load_benchmark

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import evaluate_checkpoint

TINY = replace(
    recipes.RESNET50_CUB, name="tiny", backbone="test_resnet", embedding_size=2, num_layers=1, num_heads=2, frozen=None
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set of 2 x 6 classes, and a checkpoint of a network that saw nothing."""
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
    given = {"checkpoint": root / "tiny.pth", "recipe": "tiny", "data-root": root / "cub", "image-size": 32, **changed}
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
            "no published checkpoint of the recipe googlenet_cub; missing: feature_extractor",
        ),
        ({"checkpoint": "nowhere.pth"}, "--checkpoint: there is no file nowhere.pth"),
        ({"checkpoint": __file__}, "test_evaluate_checkpoint.py is no whole file of torch.save"),
        ({"data-root": "nowhere"}, "--data-root: "),
        ({"device": "cuda"}, "--device cuda: torch finds no GPU"),
        ({"device": "abacus"}, "invalid choice: 'abacus'"),
        ({"batch-size": 0}, "--batch-size must be at least 1, got 0"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"image-size": 8}, "--image-size must be at least 32, got 8"),
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


def test_help_names_recipes_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate_checkpoint.main(["--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "one of resnet50_cub, resnet50_cars196" in printed
    assert "images at a time (default: 256)" in printed
    assert "in percent as a Markdown table" in printed

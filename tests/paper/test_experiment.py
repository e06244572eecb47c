from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import layouts

from pml_gca.datasets import load_benchmark
from pml_gca.paper import Experiment, Options, dry_run, recipes
from pml_gca.paper.report import seeds_table

RECIPE = replace(
    recipes.RESNET50_CUB,
    backbone="test_resnet",
    classes_per_batch=3,
    embedding_size=16,
    num_heads=2,
    num_layers=1,
    epochs=2,
    warmup_epochs=1,
)
OPTIONS = Options(pretrained=False, image_size=32, device="cpu")


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    return load_benchmark("cub", layouts.write_cub(tmp_path_factory.mktemp("cub")), image_size=32, val_fraction=0.4)


def weights(experiment):
    return {name: p.detach().clone() for name, p in experiment.setup.models["trunk"].named_parameters()}


def test_only_the_head_learns_in_the_warm_up(cub, tmp_path):
    experiment = Experiment(RECIPE, cub, OPTIONS, tmp_path)
    experiment.build()
    head = experiment.setup.models["embedder"][1].weight.clone()
    before = weights(experiment)
    experiment.train_epoch(1)
    assert all(torch.equal(value, before[name]) for name, value in weights(experiment).items())
    assert not torch.equal(experiment.setup.models["embedder"][1].weight, head)
    experiment.train_epoch(2)
    moved = {name for name, value in weights(experiment).items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if ".bn" in name]  # the recipe freezes these


def test_a_folder_of_another_run_is_refused(cub, tmp_path):
    Experiment(RECIPE, cub, OPTIONS, tmp_path).train()
    others = {
        "alpha is 1.0, was 5": (replace(RECIPE, alpha=1.0), OPTIONS),
        "loss is triplet, was n_pairs": (RECIPE, replace(OPTIONS, loss="triplet")),
        "seed is 3, was 0": (RECIPE, replace(OPTIONS, seed=3)),
    }
    for message, (recipe, options) in others.items():
        with pytest.raises(ValueError, match=f"result.json is of another run .*{message}"):
            Experiment(recipe, cub, options, tmp_path).train()
    (tmp_path / "result.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint.pt is of another run \(alpha is 1"):
        Experiment(others["alpha is 1.0, was 5"][0], cub, OPTIONS, tmp_path).train()
    fewer = replace(cub, test={"test": cub.val})
    with pytest.raises(ValueError, match=r"checkpoint.pt is of another run .*images is"):
        Experiment(RECIPE, fewer, OPTIONS, tmp_path).train()


def test_loading_processes(cub, tmp_path, capfd):
    result = Experiment(RECIPE, cub, replace(OPTIONS, workers=2, select_on="last"), tmp_path).train()
    assert result["epoch"] == 2
    assert result["history"]["recall_at_1"] == []
    (tmp_path / "result.json").unlink()
    capfd.readouterr()
    Experiment(RECIPE, cub, replace(OPTIONS, select_on="last"), tmp_path).train()
    told = (
        "started with cpu and 2 loading processes, resumed with cpu and 0 loading processes: random draws will differ"
    )
    assert told in capfd.readouterr().out


class Seen:
    """A data set that remembers which images were asked for."""

    def __init__(self, dataset):
        self.dataset, self.rows = dataset, []

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row):
        self.rows.append(row)
        return self.dataset[row]


@pytest.mark.parametrize("sampler", ["covering", "random"])
def test_images_of_a_class_come_once_before_any_repeats(sampler, cub, tmp_path):
    train = Seen(cub.train)
    recipe = replace(RECIPE, classes_per_batch=2, samples_per_class=2, epochs=4)
    options = replace(OPTIONS, sampler=sampler, select_on="last", generator="none")
    experiment = Experiment(recipe, replace(cub, train=train), options, tmp_path)
    experiment.train()
    labels = cub.train.labels.tolist()
    assert len(train.rows) == recipe.epochs * experiment.iterations * recipe.batch_size
    whole = []
    for label in set(labels):
        rows = [row for row in train.rows if labels[row] == label]
        number = labels.count(label)
        whole += [len(set(rows[i : i + number])) == number for i in range(0, len(rows) - number + 1, number)]
    assert len(whole) > 8
    assert all(whole) == (sampler == "covering")


def test_among_nan_recalls_the_latest_is_kept(cub, tmp_path, monkeypatch):
    experiment = Experiment(RECIPE, cub, OPTIONS, tmp_path)
    experiment.build()
    for epoch, (recall, best) in enumerate(
        [(float("nan"), 1), (float("nan"), 2), (0.5, 3), (0.4, 3), (0.6, 5)], start=1
    ):
        monkeypatch.setattr(experiment, "evaluate", lambda *args, value=recall: {"recall_at_1": value})
        experiment.choose(epoch)
        assert experiment.best_epoch == best


def test_missing_record_keeper_is_reported_before_training(cub, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "record_keeper", None)
    for run in (Experiment(RECIPE, cub, OPTIONS, tmp_path).train, lambda: dry_run(RECIPE, cub, OPTIONS)):
        with pytest.raises(
            ImportError, match=r"records of the run need record_keeper.*pip install 'pml-gca\[examples\]'"
        ):
            run()


def test_published_numbers_appear_only_beside_the_recipe_of_the_paper(cub):
    result = {"epoch": 7, "metrics": dict.fromkeys(METRICS, 0.5), "seconds_per_iteration": 1.0}
    options = Options(loss="proxy_anchor", select_on="test", device="cpu")
    table = seeds_table({0: result}, recipes.RESNET50_CUB, options, cub)
    assert "| the paper, epoch chosen on test classes | 72.3 ± 0.3 |" in table
    assert "Unlike the paper" not in table
    assert "classes, 2 more held out" in table
    for other in (
        (replace(recipes.RESNET50_CUB, alpha=3), options),
        (recipes.RESNET50_CUB, replace(options, amp=True)),
        (recipes.RESNET50_CUB, replace(options, schedule="one_backward")),
        (recipes.RESNET50_CUB, replace(options, sampler="random")),
        (replace(recipes.RESNET50_CUB, xavier_attention=False), options),
        (replace(recipes.RESNET50_CUB, generator_options={"merging": "mean"}), options),
    ):
        table = seeds_table({0: result}, *other, cub)
        assert "72.3" not in table
        assert "Unlike the paper: " in table
    alone = seeds_table({0: result}, recipes.RESNET50_CUB, replace(options, generator="none"), cub)
    assert "| the paper, epoch chosen on test classes | 68.5 ± 0.3 |" in alone


METRICS = [*(f"recall_at_{k}" for k in (1, 2, 4, 8)), "mean_average_precision_at_r", "r_precision"]


def test_own_backbone_with_amp(cub, tmp_path):
    class Colours(torch.nn.Module):
        num_features = 3

        def forward(self, images):
            return images.mean(dim=(2, 3))

    recipe = replace(RECIPE, frozen=None)
    result = Experiment(recipe, cub, replace(OPTIONS, amp=True), Path(tmp_path), backbone=Colours()).train()
    assert 0 < result["metrics"]["recall_at_8"] <= 1

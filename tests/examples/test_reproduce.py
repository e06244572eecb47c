import json
import re
from pathlib import Path

import pytest
import reproduce
import torch
from helpers import layouts
from helpers.states import assert_bitwise_equal

from pml_gca.generators import NAMED_GENERATORS
from pml_gca.names import GENERATORS
from pml_gca.paper import Experiment
from pml_gca.paper.recipes import RECIPES

WRITERS = {
    "cub": layouts.write_cub,
    "cars196": layouts.write_cars196,
    "sop": layouts.write_sop,
    "inshop": layouts.write_inshop,
}
COMMON = ["--random-weights", "--image-size", "32", "--workers", "0", "--device", "cpu"]
TINY = ["--set", "backbone=test_resnet", "classes_per_batch=3", "embedding_size=16", "num_heads=2", "num_layers=1"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A tiny folder of each data set."""
    found = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, root in found.items():
        WRITERS[name](root)
    return found


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Run on the CPU, where sums have a fixed order."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def reproduce_cub(roots, out, *more):
    reproduce.main(
        ["--recipe", "resnet50_cub", "--data-root", str(roots["cub"]), "--out", str(out), *COMMON, *TINY, *more]
    )


def results(out, seed=0):
    """Everything that a run leaves except times."""
    folder = out / f"seed{seed}"
    found = json.loads((folder / "result.json").read_text())
    del found["seconds_per_iteration"], found["history"]["seconds"]
    (best,) = folder.glob("best-*.pt")
    assert best.name == f"best-{found['epoch']}.pt"
    states = [torch.load(path, weights_only=True)["state"] for path in (best, folder / "checkpoint.pt")]
    return found, states


@pytest.mark.parametrize("loss", ["n_pairs", "proxy_anchor"])
def test_a_killed_run_resumes_to_the_same_result(loss, roots, tmp_path, monkeypatch, capsys):
    more = ["--loss", loss, "--epochs", "3", "--val-fraction", "0.4"]
    reproduce_cub(roots, tmp_path / "unbroken", *more)
    steps = {"save_checkpoint": 2, "choose": 2, "train_epoch": 3} if loss == "n_pairs" else {"evaluate": 4}
    for name, nth in steps.items():
        die_after(monkeypatch, name, nth)
        out = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            reproduce_cub(roots, out, *more)
        monkeypatch.undo()
        with pytest.raises(SystemExit, match="holds runs already; give --resume"):
            reproduce_cub(roots, out, *more)
        capsys.readouterr()
        reproduce_cub(roots, out, *more, "--resume")
        assert (
            f"resuming after epoch {1 if name == 'choose' else 3 if name == 'evaluate' else 2}"
            in capsys.readouterr().out
        )
        assert_bitwise_equal(results(out), results(tmp_path / "unbroken"))


def die_after(monkeypatch, name, nth):
    """Kill the run when a method of Experiment has returned for the nth time."""
    method, calls = getattr(Experiment, name), []

    def call_and_die(self, *args):
        found = method(self, *args)
        calls.append(args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Experiment, name, call_and_die)


def test_a_finished_run_is_extended(roots, tmp_path, capsys):
    more = ["--generator", "none", "--val-fraction", "0.4"]
    reproduce_cub(roots, tmp_path / "unbroken", *more, "--epochs", "3")
    reproduce_cub(roots, tmp_path / "extended", *more, "--epochs", "2")
    with pytest.raises(SystemExit, match="holds runs already; give --resume"):
        reproduce_cub(roots, tmp_path / "extended", *more, "--epochs", "3")
    reproduce_cub(roots, tmp_path / "extended", *more, "--epochs", "3", "--resume")
    assert "finished before with 2 epochs, goes on to 3" in capsys.readouterr().out
    assert_bitwise_equal(results(tmp_path / "extended"), results(tmp_path / "unbroken"))
    assert ", 3 epochs." in (tmp_path / "extended" / "table.md").read_text()


def test_an_extended_run_follows_the_longer_schedule(roots, tmp_path, monkeypatch):
    rates, train_epoch = [], Experiment.train_epoch

    def noted(self, epoch):
        rates.append([group["lr"] for group in self.setup.optimizers["metric_loss_optimizer"].param_groups])
        train_epoch(self, epoch)

    monkeypatch.setattr(Experiment, "train_epoch", noted)
    more = ["--val-fraction", "0.4", "--resume"]
    for epochs in (1, 4):
        reproduce_cub(roots, tmp_path / "extended", *more, "--epochs", str(epochs))
    reproduce_cub(roots, tmp_path / "unbroken", *more, "--epochs", "4")
    assert rates[1:4] == rates[5:8]
    assert rates[1][0] == pytest.approx(1.5e-4 * (1 + 0.5**0.5) / 2)


def test_table_over_seeds(roots, tmp_path, capsys):
    reproduce_cub(roots, tmp_path, "--epochs", "2", "--seeds", "2", "--select-on", "test", "--schedule", "one_backward")
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    for text in ("n_pairs + GCA-HNG", "Recall@8", "MAP@R", "R-precision", "seed 0, epoch", "mean ± standard deviation"):
        assert text in table
    assert "chosen on the test classes themselves" in table
    assert "backbone=test_resnet" in table
    assert "the paper, epoch" not in table  # whose recipe this is not
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    first, second = (results(tmp_path, seed)[0] for seed in (0, 1))
    assert first["metrics"] != second["metrics"]
    for result in (first, second):
        assert result["history"]["recall_at_1"][result["epoch"] - 1] == max(result["history"]["recall_at_1"])
        assert result["metrics"]["recall_at_1"] == max(result["history"]["recall_at_1"])
    reproduce_cub(
        roots,
        tmp_path,
        "--epochs",
        "2",
        "--seeds",
        "2",
        "--select-on",
        "test",
        "--schedule",
        "one_backward",
        "--resume",
    )
    assert "finished before" in capsys.readouterr().out


def test_the_loss_alone_and_the_last_epoch(roots, tmp_path, capsys):
    reproduce_cub(roots, tmp_path, "--generator", "none", "--epochs", "1", "--select-on", "last", "--amp")
    assert "n_pairs, unseen classes" in capsys.readouterr().out
    state = torch.load(tmp_path / "seed0" / "checkpoint.pt", weights_only=True)["state"]
    assert not [name for name in state["metric_loss"] if "generator" in name]
    assert not (tmp_path / "curves.png").exists()


def test_hardest_real_negatives(roots, tmp_path, capsys):
    more = ["--generator", "hardest", "--epochs", "1", "--select-on", "last"]
    reproduce_cub(roots, tmp_path / "out", *more, "--dry-run")
    assert "the generator's share: batch of" in capsys.readouterr().out
    reproduce_cub(roots, tmp_path / "out", *more)
    assert "n_pairs + hardest real negatives, classified, unseen classes" in capsys.readouterr().out
    loss = torch.load(tmp_path / "out" / "seed0" / "checkpoint.pt", weights_only=True)["state"]["metric_loss"]
    assert {name.split(".")[1] for name in loss if name.startswith("generator.")} == {"propagation"}
    assert not [name for name in loss if "edge" in name]


@pytest.mark.parametrize("name", sorted(set(NAMED_GENERATORS) - {"gca", "hardest"}))
def test_every_generator_by_name(name, roots, tmp_path, capsys):
    arguments = ["--set", "dropout=0.2", "--generator", name, "--epochs", "1", "--select-on", "last"]
    reproduce_cub(roots, tmp_path / "dry", *arguments, "--dry-run")
    printed = capsys.readouterr()
    assert "one seed, all epochs" in printed.out
    assert f"--set dropout, num_heads, num_layers: not used with --generator {name}" in printed.err
    reproduce_cub(roots, tmp_path / "out", *arguments)
    assert f"n_pairs + {GENERATORS[name]}, unseen classes" in capsys.readouterr().out


def test_another_backbone_gets_its_own_input(roots, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(reproduce, "dry_run", lambda *arguments: seen.append(arguments))
    arguments = ["--recipe", "resnet50_cub", "--data-root", str(roots["cub"]), "--random-weights", "--dry-run"]
    arguments += ["--set", "classes_per_batch=3"]
    for more in ([], ["--backbone", "test_resnet"], ["--backbone", "test_resnet", "--image-size", "32"]):
        reproduce.main([*arguments, *more])
    found = []
    for recipe, benchmark, options in seen:
        image = benchmark.test["test"][0][0]
        normalize = benchmark.train.transform.transforms[-1]
        found.append((recipe.backbone, tuple(image.shape), options.image_size, tuple(normalize.mean)))
    half, imagenet = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
    assert found == [
        ("resnet50", (3, 224, 224), 224, imagenet),
        ("test_resnet", (3, 160, 160), 160, half),
        ("test_resnet", (3, 32, 32), 32, half),
    ]
    resize = seen[1][1].test["test"].transform.transforms[1]
    assert resize.size == round(160 / 0.95)
    with pytest.raises(SystemExit):
        reproduce.main([*arguments, "--backbone", "resnet5O"])
    assert "no backbone is called 'resnet5O' (did you mean resnet50?)" in capsys.readouterr().err


def test_titles_name_what_is_trained_on_what(tmp_path, capsys):
    root = layouts.write_folder(tmp_path / "my pictures")
    common = ["--recipe", "resnet50_cub", "--data-root", str(root), *COMMON, *TINY, "dataset=folder", "--epochs", "1"]
    common += ["--select-on", "last", "--generator", "hardest", "--out", str(tmp_path / "out")]
    reproduce.main([*common, "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.startswith("test_resnet on my pictures: 24 images of 6 classes for training, 24 images of 6 classes")
    assert "resnet50_cub" not in printed
    assert not re.search(r" 0\.0+ ", printed), printed
    assert re.search(r"about \d+(\.\d+)? (minutes|seconds)", printed)
    reproduce.main(common)
    printed = capsys.readouterr().out
    assert "test_resnet on my pictures seed 0: epoch 1 of 1" in printed
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.startswith("test_resnet on my pictures with the settings of resnet50_cub, n_pairs + hardest real")
    assert table.endswith(" s per iteration, 1 epoch.\n")


def test_options_of_the_generator(roots, tmp_path, capsys):
    more = ["dropout=0.3", "merging=hardest", "xavier_attention=false"]
    arguments = [*TINY, *more, "--epochs", "1", "--select-on", "last", "--sampler", "random"]
    reproduce_cub(roots, tmp_path, *arguments)
    table = capsys.readouterr().out
    for change in ("dropout=0.3", "merging=hardest", "xavier_attention=False", "sampler=random"):
        assert change in table
    identity = json.loads((tmp_path / "seed0" / "result.json").read_text())["identity"]
    assert (identity["dropout"], identity["merging"]) == (0.3, "hardest")
    with pytest.raises(SystemExit, match=r"runs of other settings.*merging is mean, was hardest"):
        reproduce_cub(roots, tmp_path, *arguments, "--set", "merging=mean", "--resume")


def test_own_loss_and_data(tmp_path, monkeypatch, capsys):
    layouts.write_folder(tmp_path / "pictures")
    (tmp_path / "my_losses.py").write_text(
        "from pytorch_metric_learning import losses\n\n\ndef make(num_classes, embedding_size):\n"
        "    assert embedding_size == 16\n    return losses.CosFaceLoss(num_classes, embedding_size)\n"
    )
    monkeypatch.chdir(tmp_path)
    data = ["--recipe", "resnet50_cub", "--data-root", "pictures", "--loss", "my_losses:make", "--epochs", "1"]
    settings = [*TINY, "dataset=folder", "classes_per_batch=2"]
    reproduce.main([*data, *COMMON, *settings, "--select-on", "last"])
    assert "my_losses:make + GCA-HNG" in capsys.readouterr().out
    assert (tmp_path / "runs" / "resnet50_cub-my_losses.make-gca" / "seed0" / "result.json").exists()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_dry_run_of_every_recipe(recipe, roots, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ["--set", "classes_per_batch=2", "--out", str(out), "--val-fraction", "0.4"]
    reproduce.main(
        ["--recipe", recipe.name, "--data-root", str(roots[recipe.dataset]), *COMMON, *settings, "--dry-run"]
    )
    printed = capsys.readouterr().out
    assert "one seed, all epochs and evaluations: about" in printed
    assert "peak memory" in printed
    assert "the generator's share: batch of" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "resnet50_cup"], "no recipe is called 'resnet50_cup' (did you mean resnet50_cub?)"),
        (["--loss", "npairs"], "no loss is called 'npairs' (did you mean n_pairs?); there are n_pairs, contrastive"),
        (["--loss", "nowhere:loss"], "--loss nowhere:loss: No module named 'nowhere'"),
        (["--generator", "hdlm"], "argument --generator: invalid choice: 'hdlm'"),
        (["--device", "cuda"], "device is 'cuda', but torch finds no GPU"),
        (["--device", "abacus"], "device must be cpu, cuda, cuda:1 or the like, got 'abacus'"),
        (["--set", "samples_per_class=1"], "samples_per_class must be at least 2"),
        (["--set", "epoch=3"], "--set takes FIELD=VALUE, with FIELD one of backbone, dataset"),
        (["--set", "alpha=high"], "--set alpha takes a number, got 'high'"),
        (["--set", "xavier_attention=maybe"], "--set xavier_attention takes true or false, got 'maybe'"),
        (["--set", "merging=some"], "merging must be random, mean or hardest, got 'some'"),
        (["--set", "num_heads=3"], "embedding_size must be divisible by num_heads, got 512 channels for 3 heads"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--image-size", "8"], "--image-size must be at least 16, got 8"),
        (["--evaluate-every", "0"], "evaluate_every must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--recipe", "resnet50_cub", "--data-root", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("name", "lone", "message"),
    [
        ("folder", "test", r"the test set of folder cannot be evaluated: none of its images \(6\) has another image"),
        (
            "folder",
            "val",
            r"the validation set of folder cannot be evaluated: none of its images \(2\) has another image",
        ),
        (
            "inshop",
            "test",
            r"the test set of inshop .* none of its images \(12\) has an image of its class in the gallery",
        ),
    ],
)
def test_splits_with_nothing_to_find_are_refused_before_training(name, lone, message, dry, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "train", None)
    root, out = {"folder": layouts.write_folder, **WRITERS}[name](tmp_path / "data"), tmp_path / "out"
    if name == "folder":
        benchmark = reproduce.load_benchmark(name, root, train_transform=len, test_transform=len)
        for file in (benchmark.test["test"] if lone == "test" else benchmark.val).files:
            if not file.endswith("0.jpg"):
                Path(file).unlink()
    else:
        partition = root / "Eval" / "list_eval_partition.txt"
        rows = [line.split() for line in partition.read_text().splitlines()]
        others = [
            [name, f"id_9{item[4:]}", status] if status == "query" else [name, item, status]
            for name, item, status in rows[2:]
        ]
        partition.write_text("\n".join(" ".join(row) for row in [*rows[:2], *others]))
    data = ["--recipe", "resnet50_inshop" if name == "inshop" else "resnet50_cub", "--data-root", str(root)]
    arguments = [*data, *COMMON, *TINY, f"dataset={name}", "--out", str(out), *dry]
    with pytest.raises(SystemExit, match=rf"^reproduce\.py: {message}"):
        reproduce.main(arguments)
    assert not list(out.glob("seed*"))


def test_lone_images_are_counted(tmp_path):
    root = layouts.write_folder(tmp_path / "data")
    test = reproduce.load_benchmark("folder", root, train_transform=len, test_transform=len).test["test"]
    for file in test.files[1:4]:
        Path(file).unlink()
    arguments = ["--recipe", "resnet50_cub", "--data-root", str(root), *COMMON, *TINY, "dataset=folder", "--dry-run"]
    with pytest.warns(UserWarning, match="^1 of 21 images of the test set of folder has no image of its class to find"):
        reproduce.main([*arguments, "--select-on", "last", "--eval-batch-size", "1"])


def test_a_figure_that_cannot_be_drawn_costs_nothing(roots, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce.visualize, "plot_curves", None)
    reproduce_cub(roots, tmp_path, "--epochs", "1", "--select-on", "test")
    printed = capsys.readouterr()
    assert (tmp_path / "table.md").read_text() in printed.out
    assert "curves.png could not be drawn (TypeError" in printed.err
    assert "Learning curves" not in printed.out


def test_bad_data_and_folders(roots, tmp_path):
    with pytest.raises(SystemExit, match=r"images\.txt"):
        reproduce_cub({"cub": tmp_path}, tmp_path / "out")
    with pytest.raises(
        SystemExit, match=r"classes_per_batch is 27, but there are (\d+) .*by --set classes_per_batch=\1$"
    ):
        reproduce_cub(roots, tmp_path / "out", "--set", "classes_per_batch=27")
    with pytest.raises(SystemExit, match="training classes have fewer than the 9 images that a batch takes"):
        reproduce_cub(roots, tmp_path / "out", *TINY, "samples_per_class=9", "--small-classes", "stop")
    reproduce_cub(roots, tmp_path / "out", "--epochs", "1", "--select-on", "last")
    arguments = ["--recipe", "resnet50_cars196", "--data-root", str(roots["cars196"]), "--epochs", "1", *COMMON, *TINY]
    with pytest.raises(SystemExit, match=r"runs of other settings.*name is resnet50_cars196, was resnet50_cub"):
        reproduce.main([*arguments, "--select-on", "last", "--out", str(tmp_path / "out"), "--resume"])

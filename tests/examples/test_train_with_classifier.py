import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import train_with_classifier
from helpers.states import assert_bitwise_equal
from PIL import Image

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import NAMED_GENERATORS, BaseGenerator
from pml_gca.names import GENERATORS

SETTINGS = ["--epochs", "3", "--iterations", "3", "--classes-per-batch", "4", "--image-size", "16"]
SETTINGS += ["--embedding-size", "8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve classes of six noisy pictures."""
    root = tmp_path_factory.mktemp("pictures")
    source = torch.Generator().manual_seed(0)
    for label in range(12):
        (root / f"class{label:02d}").mkdir()
        pattern = torch.rand(16, 16, 3, generator=source)
        for i in range(6):
            noisy = (pattern + 0.3 * torch.rand(16, 16, 3, generator=source)).clamp(0, 1)
            Image.fromarray((255 * noisy).byte().numpy()).save(root / f"class{label:02d}" / f"{i}.png")
    return root


def results(out):
    """Everything a run leaves but the time it took."""
    found = {}
    for kind in ("none", "gca"):
        result = json.loads((out / kind / "result.json").read_text())
        state = torch.load(out / kind / "checkpoint.pt", weights_only=True)["state"]
        curve, watched = result["history"]["recall_at_1"], result["watched"]
        assert [entry["iterations"] for entry in watched] == ([] if kind == "none" else [0, 3, 6])
        found[kind] = (result["metrics"], curve, watched, result["neighbours"], state)
    return found


def test_a_killed_run_resumes_to_the_same_result(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # where every sum has one order
    common = ["--data", str(pictures), *SETTINGS]
    train_with_classifier.main([*common, "--out", str(tmp_path / "unbroken")])
    printed = capsys.readouterr().out
    assert "| n-pairs + GCA-HNG |" in printed
    assert "| difference" in printed

    command = [sys.executable, "-u", train_with_classifier.__file__, *common]
    command += ["--out", str(tmp_path / "broken")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        assert any("GCA-HNG: epoch 2 of 3" in line for line in process.stdout)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "broken" / "gca" / "result.json").exists()
    train_with_classifier.main([*common, "--out", str(tmp_path / "broken"), "--resume"])
    assert "n-pairs: finished before" in capsys.readouterr().out

    assert_bitwise_equal(results(tmp_path / "unbroken"), results(tmp_path / "broken"))
    for name in ("curves.png", "retrieval.png", "gca/watch.png", "table.md"):
        assert (tmp_path / "broken" / name).stat().st_size > 0
    assert (tmp_path / "broken" / "gca" / "logs" / "logs.db").exists()
    assert list((tmp_path / "broken" / "gca" / "tensorboard").iterdir())

    with pytest.raises(SystemExit, match="holds runs already; give --resume"):
        train_with_classifier.main([*common, "--out", str(tmp_path / "broken")])
    with pytest.raises(SystemExit, match=r"runs of other settings \(lr is 0.1, was 0.001\)"):
        train_with_classifier.main([*common, "--lr", "0.1", "--out", str(tmp_path / "broken"), "--resume"])


@pytest.mark.parametrize("loss", ["triplet", "proxy_anchor", "arcface"])
def test_losses_on_offer_train_with_the_generator(loss, pictures, tmp_path):
    train_with_classifier.main(
        [
            "--data",
            str(pictures),
            *SETTINGS,
            "--epochs",
            "1",
            "--loss",
            loss,
            "--generator",
            "gca",
            "--out",
            str(tmp_path),
        ]
    )
    assert (tmp_path / "table.md").read_text().count("\n") == 3


def test_hardest_real_negatives(pictures, tmp_path, capsys, monkeypatch):
    made = []

    class Wrapped(HardNegativeGenerationLoss):
        def __init__(self, loss, generator, **options):
            made.append([type(part).__name__ for part in generator.modules() if isinstance(part, BaseGenerator)])
            super().__init__(loss, generator, **options)

    monkeypatch.setattr(train_with_classifier, "HardNegativeGenerationLoss", Wrapped)
    common = ["--data", str(pictures), *SETTINGS, "--out", str(tmp_path)]
    train_with_classifier.main([*common, "--generator", "gca"])
    train_with_classifier.main([*common, "--generator", "all", "--resume"])
    printed = capsys.readouterr().out
    for name in ("n-pairs + hardest real negatives, classified", "difference, n-pairs + GCA-HNG"):
        assert f"| {name.ljust(len('difference, n-pairs + hardest real negatives, classified'))} |" in printed
    # The first is trained once.
    assert made == [["GlobalCorrelationGenerator"], ["ClassifiedGenerator", "HardestNegativeGenerator"]]
    with pytest.raises(SystemExit, match="holds runs"):
        train_with_classifier.main([*common, "--generator", "hardest"])


@pytest.mark.parametrize("name", NAMED_GENERATORS)
def test_every_generator_is_made_by_name(name):
    args = train_with_classifier.classifier_arguments(["--generator", name])
    loss, groups = train_with_classifier.build_loss(name, args, 5)
    assert type(loss.generator) is type(NAMED_GENERATORS[name](5, 128))
    assert [p for group in groups for p in group["params"]] == list(loss.parameters())


@pytest.mark.parametrize("name", ["mixup", "hdml_reembed"])
def test_generators_without_a_graph_train(name, pictures, tmp_path, capsys):
    common = ["--data", str(pictures), *SETTINGS, "--epochs", "1", "--out", str(tmp_path)]
    train_with_classifier.main([*common, "--generator", name])
    assert f"| n-pairs + {GENERATORS[name]} |" in capsys.readouterr().out


def test_a_finished_run_is_extended(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    common = ["--data", str(pictures), *SETTINGS, "--generator", "mixup", "--out"]
    train_with_classifier.main([*common, str(tmp_path / "unbroken")])
    train_with_classifier.main([*common, str(tmp_path / "extended"), "--epochs", "2"])
    train_with_classifier.main([*common, str(tmp_path / "extended"), "--resume"])
    assert "finished before with 2 epochs, goes on to 3" in capsys.readouterr().out
    found = [json.loads((tmp_path / name / "mixup" / "result.json").read_text()) for name in ("unbroken", "extended")]
    for result in found:
        del result["seconds_per_iteration"], result["history"]["seconds"]
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:.* left out of")
def test_files_that_cannot_be_read(pictures, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(pictures, root)
    (root / "class03" / "0.png").write_text("no image")
    (root / "empty").mkdir()
    for path in (root / "class05").glob("[1-5].png"):
        path.unlink()
    (root / "class07" / "more").mkdir()
    (root / "class07" / "0.png").rename(root / "class07" / "more" / "0.png")
    common = ["--data", str(root), *SETTINGS, "--epochs", "1", "--generator", "none", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"--data: 1 class folder of .* holds no image: empty.*--unreadable skip"):
        train_with_classifier.main(common)
    (root / "empty").rmdir()
    with pytest.raises(SystemExit, match=r"--data: 1 of 67 images .* cannot be read: class03.0.png.*--unreadable skip"):
        train_with_classifier.main(common)
    (root / "empty").mkdir()
    train_with_classifier.main([*common, "--unreadable", "skip"])
    printed = capsys.readouterr().err
    assert "1 class of one image: class05; a single image has no positive" in printed
    assert "1 class folder with images in subfolders" in printed
    assert "count as images of the class folder: class07 (more)" in printed


def test_bad_data_folder(tmp_path):
    (tmp_path / "data" / "only").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "only" / "a.png")
    with pytest.raises(SystemExit, match=r"--data: .* holds 1 class folder"):
        train_with_classifier.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def folder(root, classes, images):
    """Class folders of noisy pictures."""
    source = torch.Generator().manual_seed(0)
    for label in range(classes):
        (root / f"class{label:02d}").mkdir(parents=True)
        for i in range(images):
            noise = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=source)
            Image.fromarray(noise.numpy()).save(root / f"class{label:02d}" / f"{i}.png")
    return root


def test_classes_of_one_picture_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train_with_classifier, "train", None)
    root, out = folder(tmp_path / "data", 12, 2), tmp_path / "out"
    val = train_with_classifier.ClassFolder(root, "val", image_size=16)
    for name in val.classes:
        (root / name / "1.png").unlink()
    with pytest.raises(
        SystemExit, match=r"^--data: the val set cannot be evaluated: none of its images \(1\) has another"
    ):
        train_with_classifier.main(["--data", str(root), *SETTINGS, "--out", str(out)])
    assert not out.exists()


def test_a_test_set_of_four(tmp_path, capsys):
    root, out = folder(tmp_path / "data", 5, 2), tmp_path / "out"
    train_with_classifier.main(["--data", str(root), *SETTINGS, "--epochs", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "Unseen classes: 2 with 4 images" in printed.out
    assert "all images of the val set are of one class: recall is 1 with any model" in printed.err
    assert "2 training classes have fewer than 3 images, which are repeated" in printed.err
    assert f"Figures: {out / 'curves.png'}, {out / 'retrieval.png'}, {out / 'gca' / 'watch.png'}\n" in printed.out
    for kind in ("none", "gca"):
        result = json.loads((out / kind / "result.json").read_text())
        assert all(len(found) == 3 for found in result["neighbours"])


def test_a_figure_that_cannot_be_drawn_costs_nothing(pictures, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no ink")

    monkeypatch.setattr(train_with_classifier.visualize, "plot_curves", fail)
    common = ["--data", str(pictures), *SETTINGS, "--epochs", "1", "--generator", "none", "--out", str(tmp_path)]
    train_with_classifier.main(common)
    printed = capsys.readouterr()
    assert "curves.png could not be drawn (RuntimeError: no ink); results are not affected" in printed.err
    assert f"Figures: {tmp_path / 'retrieval.png'}\n" in printed.out
    assert (tmp_path / "table.md").read_text() in printed.out


def test_training_that_diverges_ends_in_a_sentence(pictures, tmp_path):
    common = ["--data", str(pictures), *SETTINGS, "--generator", "none", "--lr", "1e30", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="NaN"):
        train_with_classifier.main(common)


def test_bad_arguments_and_help(capsys):
    for option, value, message in (
        ("--epochs", "0", "--epochs must be at least 1, got 0"),
        ("--classes-per-batch", "1", "--classes-per-batch must be at least 2, or no batch has negatives, got 1"),
        ("--image-size", "8", "--image-size must be at least 16"),
        ("--embedding-size", "7", "--embedding-size must be divisible by 2, got 7"),
    ):
        with pytest.raises(SystemExit):
            train_with_classifier.main([option, value])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_with_classifier.main(["--help"])
    text = capsys.readouterr().out
    for option in ("--loss", "--generator", "--data", "--epochs", "--seed", "--resume"):
        assert option in text

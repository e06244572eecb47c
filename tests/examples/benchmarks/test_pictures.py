"""The comparison with a pretrained backbone, on a made folder and random weights."""

import csv
import shutil

import numpy as np
import pytest
import timm
import torch
from helpers.comparison import BENCHMARKS
from PIL import Image

# The scripts, which helpers.comparison puts on the path.
# isort: split
import compare_generators
from comparison.inputs import Inputs, folder_fingerprint
from comparison.pictures import PICTURES

BACKBONE = "test_efficientnet"  # timm's smallest
assert BENCHMARKS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of 20 classes of 4 images, and a file of weights."""
    root = tmp_path_factory.mktemp("pictures")
    source = np.random.default_rng(0)
    for label in range(20):
        (root / "folders" / f"class{label:02d}").mkdir(parents=True)
        for image in range(4):
            pixels = source.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "folders" / f"class{label:02d}" / f"{image}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model(BACKBONE).state_dict(), root / "weights.pth")
    return root


def arguments(made, out, *names, loss="multi_similarity"):
    small = ["--image-size", "32", "--embedding-size", "8", "--trials", "1", "--trial-iterations", "1"]
    small += ["--iterations", "2", "--evaluate-every", "2", "--seeds", "1", "--processes", "1"]
    regime = ["--data", str(made / "folders"), "--backbone", BACKBONE, "--weights", str(made / "weights.pth")]
    return [*regime, *small, "--losses", loss, "--generators", *names, "--out", str(out)]


def rows(out):
    compare = ["--add", "--out", str(out)]
    compare_generators.main(compare)
    with (out / "runs.csv").open(newline="") as file:
        return {(row["stage"], row["contender"]): row for row in csv.DictReader(file)}


def test_each_contender_trains(made, tmp_path, capsys):
    names = [name for name in PICTURES if name not in ("none_double", "memory", "crossed_27")]
    compare_generators.main(arguments(made, tmp_path, *names))
    printed = capsys.readouterr().out
    for name in names:
        assert f"| {PICTURES[name].title} | 1 |" in printed
    found = rows(tmp_path)
    assert {name for _, name in found} == set(names)
    recalls = {name: found["run", name]["recall_at_1"] for name in names if PICTURES[name].tuned_as is None}
    assert len(set(recalls.values())) > 1  # they are not all the loss alone
    row = found["run", "classifier"]
    assert (row["backbone"], row["classifier"]) == (BACKBONE, "linear")
    assert row["data"] == folder_fingerprint(made / "folders")
    assert len(row["weights"]) == 12


def test_memory_and_proxies_train(made, tmp_path, capsys):
    compare_generators.main(arguments(made, tmp_path, "memory", "none", loss="nt_xent"))
    assert "CrossBatchMemory of 1,620 | 1 |" in capsys.readouterr().out
    compare_generators.main(arguments(made, tmp_path, "none", "classifier", loss="proxy_anchor"))
    assert "| the loss alone, linear classifier beside it | 1 |" in capsys.readouterr().out


def test_a_run_is_repeated_on_its_data_and_on_no_other(made, tmp_path, capsys):
    options = arguments(made, tmp_path, "none")
    compare_generators.main(options)
    capsys.readouterr()
    again = ["--repeat", "run", "multi_similarity", "none", "0"]
    compare_generators.main([*options, *again])
    assert "DIFFERENT" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"was trained on other data \(data is None, was 80 images.*give its --data"):
        compare_generators.main(["--out", str(tmp_path), *again])
    (made / "folders" / "class00" / "more.png").write_bytes((made / "folders" / "class00" / "0.png").read_bytes())
    try:
        with pytest.raises(SystemExit, match=r"tune multi_similarity none 0 has other settings \(data is 81 images"):
            compare_generators.main(options)
    finally:
        (made / "folders" / "class00" / "more.png").unlink()


def test_fingerprints_tell_folders_apart(made, tmp_path):
    first = folder_fingerprint(made / "folders")
    assert first.startswith("80 images, ")
    copy = shutil.copytree(made / "folders", tmp_path / "renamed")
    assert folder_fingerprint(copy) == first
    (copy / "class03" / "1.png").write_bytes(b"")
    assert folder_fingerprint(copy) != first
    with pytest.raises(ValueError, match=r"--data must be a folder of class folders with images, got .*nothing"):
        folder_fingerprint(tmp_path / "nothing")
    assert Inputs(made / "folders", None).settings("resnet18")["weights"] == "timm"
    assert list(Inputs().settings(None)) == ["widths"]


@pytest.mark.parametrize(
    "given", [["--data", "x"], ["--backbone", "resnet18"], ["--weights", "w"], ["--data", "x", "--weights", "w"]]
)
def test_options_that_need_each_other(given, capsys):
    with pytest.raises(SystemExit):
        compare_generators.main(given)
    assert "--data needs --backbone" in capsys.readouterr().err

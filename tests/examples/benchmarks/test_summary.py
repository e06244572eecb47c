"""The table of all kept results."""

from dataclasses import replace

import compare_generators
import pytest
from comparison.study import Study
from comparison.summary import summary
from helpers.comparison import cell, result

MAP = "mean_average_precision_at_r"


@pytest.fixture
def study(tmp_path):
    """Runs of different settings, some in tables and some in files; one contender that no version knows."""
    study = Study(tmp_path)
    for number, (alone, ours) in enumerate([(0.5, 0.6), (0.6, 0.65), (0.7, 0.85)]):
        study.write(cell("none", {"iterations": 10 + number}, stage="run", number=number), result(alone))
        study.write(cell("gca", stage="run", number=number), result(ours))
    study.write(cell("constant", stage="run", number=1), result(0.5))
    study.write(replace(cell(stage="run", number=2), contender="forgotten"), result(0.75))
    study.write(cell("none", stage="screen"), result(0.3))
    study.add()
    study.reread()
    study.write(cell("constant", stage="run"), result(0.75))
    return study


def test_differences_are_of_the_same_seeds(study):
    head, _, *lines = summary(study, "run", "recall_at_1").splitlines()
    assert head == "| Recall@1 | what it is | proxy_anchor |"
    assert lines == [
        "| none | the loss alone | 60.0 ± 24.8 (3) |",  # 4.303 x 10 / sqrt(3)
        "| gca | GCA-HNG | +10.0 ± 12.4 (3) |",
        "| constant | constant λ, no graph | +25.0, -10.0 |",  # seeds 0 and 1
        "| forgotten | a row of an earlier version | +5.0 |",
    ]


def test_the_command_needs_no_images(study, capsys):
    compare_generators.main(["--out", str(study.folder), "--summary"])
    assert capsys.readouterr().out.splitlines() == summary(study, "run", "recall_at_1").splitlines()
    compare_generators.main(["--out", str(study.folder), "--summary", "--metric", MAP])
    assert capsys.readouterr().out.startswith("| MAP@R | what it is | proxy_anchor |")
    compare_generators.main(["--out", str(study.folder), "--summary", "screened"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| none | the loss alone | 30.0 |"]
    with pytest.raises(SystemExit):
        compare_generators.main(["--out", str(study.folder), "--summary", "screened", "--metric", MAP])
    compare_generators.main(["--out", str(study.folder / "nowhere"), "--summary"])
    assert capsys.readouterr().out == f"nothing in {study.folder / 'nowhere'} yet\n"


def test_few_seeds_of_the_loss_alone_come_in_order(tmp_path):
    study = Study(tmp_path)
    study.write(cell("none", stage="run"), result(0.5))
    study.add()
    study.reread()
    study.write(cell("none", stage="run", number=1), result(0.75))  # files are read before tables
    study.write(cell("gca", stage="run", number=4), result(0.5))
    lines = summary(study, "run", "recall_at_1").splitlines()[2:]
    assert lines == ["| none | the loss alone | 50.0, 75.0 |", "| gca | GCA-HNG |  |"]


def test_what_is_not_comparable_is_said(tmp_path):
    study = Study(tmp_path)
    for number in range(3):
        study.write(cell("none", stage="run", number=number), result(0.5))
    study.write(cell("gca", stage="run"), {**result(0.0), "diverged": 7})
    study.add()
    study.reread()
    study.runs.rows["run", "proxy_anchor", "gca", 0]["processor"] = "another"
    *_, row, _, note = summary(study, "run", "recall_at_1").splitlines()
    assert row == "| gca | GCA-HNG | -50.0, 1 diverged |"
    assert note == "1 of 1 differences are between runs of two machines (torch, processor)."
    study.runs.rows["run", "proxy_anchor", "gca", 0]["image_size"] = 17
    with pytest.raises(ValueError, match=r"mixes settings: image_size is 17 in run proxy_anchor gca 0 and \d+ in run"):
        summary(study, "run", "recall_at_1")


def test_a_row_without_the_metric_is_named(study):
    with pytest.raises(ValueError, match="screen proxy_anchor none 0 has no recall_at_9"):
        summary(study, "screen", "recall_at_9")

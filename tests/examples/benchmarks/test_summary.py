"""The table of all kept results."""

from dataclasses import replace

import compare_generators
import pytest
from comparison.study import Study
from comparison.summary import summary
from helpers.comparison import cell, result


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
    compare_generators.main(["--out", str(study.folder), "--summary", "--metric", "mean_average_precision_at_r"])
    assert capsys.readouterr().out.startswith("| MAP@R | what it is | proxy_anchor |")
    compare_generators.main(["--out", str(study.folder), "--summary", "--screen", "1"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| none | the loss alone | 30.0 |"]
    compare_generators.main(["--out", str(study.folder / "nowhere"), "--summary"])
    assert capsys.readouterr().out == f"nothing in {study.folder / 'nowhere'} yet\n"

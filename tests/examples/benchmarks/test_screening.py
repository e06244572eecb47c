"""Seeds on validation classes."""

import compare_generators
import pytest
from comparison import running
from comparison.arguments import parse_arguments
from comparison.markdown import screen_table
from comparison.study import Study
from helpers.comparison import SMALL, cell


def test_screened_seeds_are_their_own():
    assert [cell(stage="screen", number=n).seed for n in range(3)] == [2000, 2001, 2002]


def test_screening_looks_at_no_test_class(tmp_path, capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr(running, "load_split", lambda settings, inputs, split: loaded.append(split))
    screen = [*SMALL, "--generators", "none", "constant", "--screen", "2", "--out", str(tmp_path)]
    compare_generators.main(screen)
    table = capsys.readouterr().out
    assert table.startswith("## n_pairs, validation classes")
    assert "| none | the loss alone | 2 |" in table
    found = [line for line in table.splitlines() if line.startswith("| constant | constant λ, no graph | 2 |")]
    assert [line.count("±") for line in found] == [2]
    study = Study(tmp_path)
    assert not study.has_runs()
    assert study.add() == 2 * 2 + 2 * 2  # trials and screened seeds
    row = study.load("screen", "n_pairs", "none", 1)
    assert set(row[2]) == {"val_recall_at_1", "seconds", "history"}
    compare_generators.main([*screen, "--report"])
    assert capsys.readouterr().out == table
    compare_generators.main([*screen, "--screen", "1", "--report"])
    assert "| none | the loss alone | 1 |" in capsys.readouterr().out
    compare_generators.main([*screen, "--repeat", "screen", "n_pairs", "none", "1"])
    assert "DIFFERENT" not in capsys.readouterr().out
    assert loaded == []


def test_frozen_views_of_test_classes_are_for_runs_alone(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(running, "load_split", lambda settings, inputs, split: loaded.append(split))
    monkeypatch.setattr(running, "train_here", lambda cell, what: {"val_recall_at_1": 0.5, "seconds": 1.0})
    for stage in ("tune", "screen", "run"):
        running.train_missing([cell(settings={"frozen_through": "x"}, stage=stage)], Study(tmp_path), 1, stage)
    assert loaded == [*("train", "val") * 2, "train", "val", "test"]


def test_differences_are_those_of_the_same_seeds():
    table = screen_table({"none": {0: 0.5, 1: 0.6}, "a": {0: 0.52, 1: 0.64, 2: 0.9}}, {"none": "n", "a": "A"})
    assert "| a | A | 3 | 68.7 ± 48.3 | +3.0 ± 12.7 |" in table
    assert "| none | n | 2 | 55.0 ± 63.5 |  |" in table


def test_at_least_one_seed(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--screen", "0"])
    assert "--screen must be at least 1" in capsys.readouterr().err

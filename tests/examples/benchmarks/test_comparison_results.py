import json
import re
from dataclasses import replace

# The scripts, which helpers.comparison puts on the path.
import compare_generators
import pytest
from comparison import registry, running
from comparison.arguments import parse_arguments
from comparison.plan import trials
from comparison.study import Study
from comparison.table import KEY
from helpers.comparison import BENCHMARKS, SMALL, cell, result, rows

import pml_gca

DOCS = BENCHMARKS.parents[1] / "docs"


def test_a_study_gives_back_what_training_gave(tmp_path):
    diverged = {**result(0.0), "diverged": 7}
    trial = {name: value for name, value in result(0.3).items() if name != "metrics"}
    wanted = [
        (cell(), trial),
        (cell("gca", {"alpha": 2.0}, stage="run", number=1), result(1 / 3)),
        (cell("gca", {"alpha": 2.0}, stage="run"), diverged),
    ]
    for one, its in wanted:
        Study(tmp_path).write(one, its)
    assert [Study(tmp_path).read(one) for one, _ in wanted] == [its for _, its in wanted]
    assert Study(tmp_path).add() == 3
    assert not list(tmp_path.rglob("*.json"))
    assert [Study(tmp_path).read(one) for one, _ in wanted] == [its for _, its in wanted]
    assert Study(tmp_path).load(*wanted[1][0].key)[0] == wanted[1][0]
    assert Study(tmp_path).add() == 0
    first = rows(tmp_path / "runs.csv")[0]
    assert (first["stage"], first["contender"], first["alpha"], first["diverged"]) == ("run", "gca", "2.0", "7")


def test_a_finished_cell_that_contradicts_its_row_is_refused(tmp_path, monkeypatch):
    one = cell("gca", {"alpha": 2.0}, stage="run")
    Study(tmp_path).write(one, result(0.5))
    Study(tmp_path).add()
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.csv")}
    other = cell("none", stage="run")
    for its, change, where, column in (
        (one, result(0.25), "runs.csv", "val_recall_at_1 is 0.25, was 0.5; recall_at_1 is 0.25, was 0.5"),
        (one, result(0.5, (0.1, 0.2, 0.3)), "curves.csv", "recall_at_1 is [0.1, 0.2, 0.3], was [0.1, 0.2, 0.4]"),
        (replace(one, settings={**one.settings, "alpha": 5.0}), result(0.5), "runs.csv", "alpha is 5.0, was 2.0"),
        (
            replace(one, settings={**one.settings, "merging": "mean"}),
            result(0.5),
            "runs.csv",
            "merging is mean, was None",
        ),
    ):
        Study(tmp_path).write(other, result(0.1))
        Study(tmp_path).write(its, change)
        with pytest.raises(ValueError, match=rf"gca.0\.json contradicts .*{where} \({re.escape(column)}\)"):
            Study(tmp_path).add()
        assert {file.name: file.read_bytes() for file in tmp_path.glob("*.csv")} == before
        assert len(list(tmp_path.rglob("*.json"))) == 2  # nothing is lost
    slower = result(0.5)
    slower |= {"seconds": 9.0, "history": {**slower["history"], "seconds": [0.0, 5.0, 9.0]}}
    monkeypatch.setattr(pml_gca, "__version__", "9.9.9")
    Study(tmp_path).write(one, slower)
    assert Study(tmp_path).add() == 2  # seconds and version contradict nothing, and the first ones stay
    assert Study(tmp_path).read(one) == result(0.5)
    Study(tmp_path).file(other).write_text("{}")
    with pytest.raises(SystemExit, match=r"compare_generators\.py: .* is no result of this comparison"):
        compare_generators.main(["--out", str(tmp_path), "--add"])


@pytest.mark.parametrize("interrupted", ["runs", "curves"])
def test_adding_goes_on_where_it_was_interrupted(interrupted, tmp_path, monkeypatch):
    study = Study(tmp_path)
    study.write(cell(stage="run"), result())
    monkeypatch.setattr(getattr(study, interrupted), "save", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study.add()
    assert Study(tmp_path).read(cell(stage="run")) == result()
    assert Study(tmp_path).add() == 1
    assert Study(tmp_path).read(cell(stage="run")) == result()
    assert [len(rows(tmp_path / name)) for name in ("runs.csv", "curves.csv")] == [1, 1]


def renamed(make):
    """The same generator by another name."""
    return lambda *args, **options: make(*args, **options)


@pytest.mark.parametrize("added", [False, True])
def test_results_outlive_versions_and_names_of_classes(added, tmp_path, capsys, monkeypatch):
    arguments = [*SMALL, "--trials", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(compare_generators, "ROUNDS", 1)
    monkeypatch.setattr(running, "train", lambda *_: result(0.5))
    compare_generators.main(arguments)
    compare_generators.main([*arguments, "--time"])
    if added:
        compare_generators.main([*arguments, "--add"])
    capsys.readouterr()
    compare_generators.main([*arguments, "--report"])
    printed = capsys.readouterr().out
    assert "1.00 ×" in printed
    first = pml_gca.__version__
    assert {row["version"] for row in rows(tmp_path / "times.csv")} == {first}
    monkeypatch.setattr(pml_gca, "__version__", "9.9.9")
    constant = registry.ALL["constant"]
    monkeypatch.setitem(registry.ALL, "constant", replace(constant, make=renamed(constant.make)))
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    before = {file: file.read_bytes() for file in files}
    compare_generators.main([*arguments, "--report"])
    assert capsys.readouterr().out == printed
    compare_generators.main(arguments)  # trains nothing
    capsys.readouterr()
    assert {file: file.read_bytes() for file in files} == before
    compare_generators.main([*arguments, "--seeds", "2"])
    compare_generators.main([*arguments, "--add"])
    versions = [row["version"] for row in rows(tmp_path / "runs.csv") if row["stage"] == "run"]
    assert versions == ["9.9.9" if number else first for number in (0, 1, 0, 1)]


def test_the_kept_results_outlive_their_version(capsys, monkeypatch):
    arguments = ["--losses", "multi_similarity", "--seeds", "3", "--out", str(DOCS / "evidence")]
    reports = []
    for version in ("0.1.0", "9.9.9"):
        monkeypatch.setattr(pml_gca, "__version__", version)
        compare_generators.main([*arguments, "--report"])
        reports.append(capsys.readouterr().out)
    assert "| GCA-HNG | 3 |" in reports[0]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("added", [False, True])
def test_a_contender_that_is_another_by_now_is_refused(added, tmp_path, monkeypatch):
    args = parse_arguments([*SMALL, "--out", str(tmp_path)])
    args.out.write(trials(args, "n_pairs", "constant")[0], result())
    if added:
        args.out.add()
    another = replace(registry.ALL["constant"], settings={"merging": "mean"})
    monkeypatch.setitem(registry.ALL, "constant", another)
    with pytest.raises(SystemExit, match=r"tune n_pairs constant 0 has other settings \(merging is mean, was None\)"):
        compare_generators.main([*SMALL, "--out", str(tmp_path)])


MIXED = json.dumps({part: dict(zip(KEY, cell(number=i).key, strict=True)) for i, part in enumerate(("run", "curve"))})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"run": 1}', '{"run": {}, "curve": {}}', MIXED])
def test_a_broken_file_is_named(content, tmp_path):
    file = tmp_path / "cells" / "tune" / "n_pairs" / "none" / "0.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    for arguments in ([*SMALL], ["--repeat", "tune", "n_pairs", "none", "0"], ["--add"]):
        with pytest.raises(SystemExit, match=r"none.0\.json is no result of this comparison"):
            compare_generators.main([*arguments, "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("stage", "without", "message"),
    [
        ("run", {"val_recall_at_1": None, "seconds": None}, "has no val_recall_at_1, seconds"),
        ("run", {"recall_at_1": None, "r_precision": None}, "has no recall_at_1, r_precision"),
        ("tune", {"val_recall_at_1": None}, "has no val_recall_at_1"),
        ("tune", {"curve": None}, "has no iterations, seconds, recall_at_1"),
    ],
)
@pytest.mark.parametrize("added", [False, True])
def test_a_result_that_lacks_something_is_named(added, stage, without, message, tmp_path, monkeypatch):
    arguments = [*SMALL, "--generators", "none", "--trials", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(running, "train", lambda *_: result(0.5))
    compare_generators.main(arguments)
    if added:
        study = Study(tmp_path)
        study.add()
        key = next(key for key in study.runs.rows if key[0] == stage)
        for name in without:
            study.runs.rows[key].pop(name, None)
        if "curve" in without:
            del study.curves.rows[key]
        for table in (study.runs, study.curves):
            table.save()
    else:
        file = next((tmp_path / "cells" / stage).rglob("*.json"))
        content = json.loads(file.read_text())
        content["run"] = {name: value for name, value in content["run"].items() if name not in without}
        if "curve" in without:
            content["curve"] = {name: content["curve"][name] for name in KEY}
        file.write_text(json.dumps(content))
    where = ("curves" if "curve" in without else "runs") + r"\.csv" if added else file.name
    for wanted in (["--report"], ["--repeat", stage, "n_pairs", "none", "0"], *([] if added else [["--add"]])):
        with pytest.raises(SystemExit, match=rf"{where}: {stage} n_pairs none 0 {message}"):
            compare_generators.main([*arguments, *wanted])

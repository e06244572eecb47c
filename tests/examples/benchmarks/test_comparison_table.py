"""Tables of the comparison: of results in CSV files, and in Markdown."""

import math

import compare_generators
import pytest
from comparison import markdown as tables
from comparison.study import Study
from comparison.table import KEY, ORIGIN, Table, as_text, as_value
from helpers.comparison import BENCHMARKS, SMALL, cell, result

DOCS = BENCHMARKS.parents[1] / "docs"
HEAD = ",".join(KEY)
NUMBERS = (0.1 + 0.2, 5e-324, 1e6, 1e22, -0.0, 7, 2**70, True, False, None, [1, 24], [[0.5, 1.0]], [])
TEXTS = ("hardest", "2.15.0+cu132", "3.0", "true", "null", "", '"x"', "a,b", 'say "a"', "two\nlines", "ɢ", ["ɢ", "G"])


@pytest.mark.parametrize("value", [*NUMBERS, *TEXTS])
def test_a_value_comes_back_as_it_was(value, tmp_path):
    table = Table(tmp_path / "t.csv", ("value",))
    row = {**dict(zip(KEY, cell().key, strict=True)), "setting": value, "version": "1.0", "value": value}
    table.put(row)
    table.save()
    (back,) = Table(table.file, ("value",)).rows.values()
    assert back == row
    assert type(back["value"]) is type(value)
    assert repr(back["value"]) == repr(value)
    assert as_value(as_text(value)) == value


def test_a_missing_value_is_blank_and_none_is_not(tmp_path):
    table = Table(tmp_path / "t.csv", ("value",))
    for number, values in enumerate(({"value": None}, {"alpha": 2.0, "value": math.inf})):
        table.put({**dict(zip(KEY, cell(number=number).key, strict=True)), **values})
    table.save()
    assert table.file.read_text().splitlines() == [
        "stage,loss,contender,number,alpha,value",
        "tune,proxy_anchor,none,0,,null",
        "tune,proxy_anchor,none,1,2.0,Infinity",
    ]
    assert Table(table.file, ("value",)).rows == table.rows


def test_rows_are_sorted_and_a_new_one_moves_no_other(tmp_path):
    table = Table(tmp_path / "t.csv", ("value",))
    for number in (10, 9, 2):
        table.put({**dict(zip(KEY, cell(number=number).key, strict=True)), "value": number})
    table.save()
    before = table.file.read_text().splitlines()
    assert [line.split(",")[3] for line in before[1:]] == ["2", "9", "10"]
    table.put({**dict(zip(KEY, cell(number=5).key, strict=True)), "value": 5})
    table.save()
    after = table.file.read_text().splitlines()
    assert [line for line in after if line not in before] == ["tune,proxy_anchor,none,5,5"]
    assert [line for line in after if line in before] == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        '"',
        "stage,loss\nrun,n_pairs\n",
        f"{HEAD}\nrun,n_pairs\n",
        f"{HEAD},alpha\nrun,n_pairs,gca,0\n",
        f"{HEAD}\nrun,n_pairs,gca,0\nrun,n_pairs,gca,0\n",
    ],
)
def test_a_broken_table_is_named(content, tmp_path):
    (tmp_path / "runs.csv").write_text(content)
    for arguments in (["--report"], ["--repeat", "tune", "n_pairs", "none", "0"]):
        with pytest.raises(SystemExit, match=r"runs\.csv, line \d is no row of a table of results"):
            compare_generators.main([*SMALL, *arguments, "--out", str(tmp_path)])


@pytest.mark.parametrize("folder", ["evidence", "evidence_longer", "evidence_no_augment"])
def test_the_tables_of_a_study_are_as_it_writes_them(folder, tmp_path):
    """Their bytes are, every run has a curve, and every row says what made it."""
    study = Study(DOCS / folder)
    assert study.runs.rows.keys() == study.curves.rows.keys() != set()
    for table in (study.runs, study.curves, study.times, study.watched):
        assert table.file.exists() == bool(table.rows)
        if table.rows:
            before, table.file = table.file.read_bytes(), tmp_path / table.file.name
            table.save()
            assert table.file.read_bytes() == before
    assert all(set(ORIGIN) <= set(row) for table in (study.runs, study.times) for row in table.rows.values())


def test_intervals():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(tables.interval([1.0])[1])
    eleven = [float(x) for x in range(11)]
    assert tables.interval(eleven)[1] == pytest.approx(2.228 * 11**0.5 / 11**0.5)
    assert tables.interval(eleven * 9)[1] > 1.96 * 10**0.5 / 99**0.5
    assert tables.cell_text([0.5, 0.5]) == "50.0 ± 0.0"
    assert tables.cell_text([0.015], sign=True) == "+1.5"


RESULTS = {
    "none": {0: result(0.5), 1: result(0.3)},
    "gca": {0: result(0.52, (0.1, 0.4, 0.5)), 1: result(0.32, (0.1, 0.3, 0.5)), 2: result(0.9)},
    "real": {1: result(0.33, (0.1, 0.2, 0.3))},
}
NAMES = {"none": "alone", "gca": "ours", "real": "control", "random": "another"}


def test_differences_are_paired():
    table = tables.loss_table(RESULTS, NAMES)
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% |\n" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% |\n" in table
    table = tables.loss_table(RESULTS, NAMES, {"none": 1.0, "gca": 3.0, "real": 1.5})
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% | 1.00 × | 100 ± 0% |" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% | 3.00 × | 225 ± 953% |" in table
    assert "| control | 1 | 33.0 | +3.0 | 10.0 | – | 1.50 × | – |" in table
    table = tables.control_table(RESULTS, NAMES, ("gca", "random"), ("random", "real"))
    assert table.splitlines() == ["| Recall@1 less that of | ours |", "| --- | ---: |", "| control | -1.0 |"]
    assert tables.control_table(RESULTS, NAMES, ("gca",), ("random",)) == ""
    table = tables.step_table(RESULTS, NAMES, [("none", "gca"), ("random", "gca"), ("gca", "real")])
    assert table.splitlines()[2:] == ["| alone | ours | +2.0 ± 0.0 |", "| ours | control | +1.0 |"]
    assert tables.step_table(RESULTS, NAMES, [("random", "gca")]) == ""
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["random", "real"], {"gca": 3.0}).splitlines()
    assert lines[2:] == [
        "| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 | 3.00 × |",
        "| control | 1 | 33.0 | +1.0 | 10.0 |  |",
    ]
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["real"]).splitlines()
    assert lines[2:] == ["| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 |", "| control | 1 | 33.0 | +1.0 | 10.0 |"]
    assert tables.ablation_table(RESULTS, NAMES, "gca", ["random"]) == ""

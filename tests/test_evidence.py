"""The numbers of the evidence are those of the result files."""

import csv
import importlib
import re

import pytest
from helpers.pages import ROOT, commands


def printed_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `compare_generators.py` prints."""
    importlib.import_module("compare_generators").main(words)
    return capsys.readouterr().out


def reported(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the rows of the tables that a `compare_generators.py ... --report` prints."""
    return [line for line in printed_by(words, capsys).splitlines() if line.startswith("|")]


def cells(row: str) -> list[str]:
    """Return the texts of a table's row."""
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the titles of all contenders, and get ready to print reports."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    return set(importlib.import_module("comparison.registry").TITLES.values())


def test_tables_of_evidence_are_those_of_the_result_files(titles: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The log has every row that a `--report` on its page prints, and no other row of a contender."""
    page = ROOT / "docs" / "evidence_log.md"
    lines = page.read_text().splitlines()
    reports = [words for _, *words in commands(page) if "--report" in words]
    assert len(reports) == 5
    printed = set()
    for words in reports:
        rows = reported(words, capsys)
        assert len(rows) > 10
        assert [row for row in rows if row not in lines] == []
        printed |= set(rows)
    ours = [line for line in lines if "±" in line and cells(line)[0] in titles]
    assert len(ours) > 50
    assert [row for row in ours if row not in printed] == []


def test_summary_of_evidence_is_that_of_the_result_files(titles: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every number of the summary is in the row of the same title that the column's report prints."""
    log, summary = (ROOT / "docs" / name for name in ("evidence_log.md", "evidence.md"))
    reports = [words for _, *words in commands(log) if "--report" in words]
    columns: list[dict[str, list[str]]] = [{}]
    for words in reports:
        rows = [cells(row) for row in reported(words, capsys)]
        second = [i for i, row in enumerate(rows) if row[0] == "---"][1]  # below the head of the second table
        columns.append({row[0]: row for row in rows[2 : second - 1]})
    (results,) = re.findall(r"<!-- summary -->\n((?:\|.*\n)+)", summary.read_text())
    checked = 0
    for title, *shown in [cells(row) for row in results.splitlines()[2:]]:
        assert title in titles
        for number, text in enumerate(shown, 1):
            values = re.findall(r"[+-]?\d+\.\d ± \d+\.\d|\d+\.\d\d ×", text)
            assert set(values) <= set(columns[number].get(title, ())), (title, text)
            assert bool(values) == (title in columns[number]), (title, text)
            checked += len(values)
    assert checked > 45
    (others,) = re.findall(r"<!-- fine-tuning -->\n((?:\|.*\n)+)", summary.read_text())
    everywhere = [line for line in summary.read_text().splitlines() if "±" in line and cells(line)[0] in titles]
    assert set(everywhere) <= set((results + others).splitlines())


@pytest.mark.usefixtures("titles")
def test_tables_of_fine_tuning_are_those_of_the_result_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A table stands below its command in a comment, with the line on machines if there is one."""
    page = (ROOT / "docs" / "evidence_fine_tuning.md").read_text()
    marks = re.findall(r"<!-- (--out \S+ --summary.*?) -->\n", page)
    assert len(marks) == 6
    for words in marks:
        assert f"<!-- {words} -->\n{printed_by(words.split(), capsys)}\n" in page, words


def summary_of(study: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """Return the cells that `--summary` prints, by contender and loss; what a contender is comes as "what it is"."""
    head, _, *rows = [cells(row) for row in reported(["--out", study, "--summary"], capsys)]
    return {name: dict(zip(head[1:], shown, strict=True)) for name, *shown in rows}


def loss_name(title: str) -> str:
    """Return the name of a loss by its title in the pages."""
    return title.lower().replace("-", "_").replace(" ", "_").replace("supcon", "sup_con")


@pytest.mark.usefixtures("titles")
def test_fine_tuning_in_short_is_that_of_the_result_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of the summary has the cells of the row of the same title that the command prints."""
    rows = summary_of("docs/evidence_pictures", capsys)
    printed = {row["what it is"]: row for row in rows.values()}
    assert len(printed) == len(rows)
    (table,) = re.findall(r"<!-- fine-tuning -->\n((?:\|.*\n)+)", (ROOT / "docs" / "evidence.md").read_text())
    head, _, *lines = [cells(row) for row in table.splitlines()]
    assert len(lines) > 7
    for title, *shown in lines:
        assert shown == [printed[title][loss_name(column)] for column in head[1:]], title


LONGER = {
    "the loss alone": ("none",),
    "the loss alone, smallest learning rate (10⁻³)": ("none_slow",),
    "BatchNorm and a linear classifier beside it": ("norm_classifier", "norm_classifier_own_rate"),
    "the same and the hardest real negatives": ("norm_hardest",),
    "GCA-HNG as published": ("gca_published",),
}


def test_each_longer_run_is_that_of_the_result_files() -> None:
    with (ROOT / "docs" / "evidence_pictures_longer" / "runs.csv").open(newline="", encoding="utf-8") as file:
        found = sorted(csv.DictReader(file), key=lambda row: int(row["number"]))
    (table,) = re.findall(r"<!-- longer -->\n((?:\|.*\n)+)", (ROOT / "docs" / "evidence.md").read_text())
    head, _, *lines = [cells(row) for row in table.splitlines()]
    trained = {row["contender"] for row in found}
    assert [title for title, *_ in lines] == [title for title, names in LONGER.items() if trained & set(names)]
    shown = 0
    for title, *texts in lines:
        for loss, text in zip(map(loss_name, head[1:]), texts, strict=True):
            values = [row for row in found if row["loss"] == loss and row["contender"] in LONGER[title]]
            assert text == ", ".join(f"{100 * float(row['recall_at_1']):.1f}" for row in values), (title, loss)
            shown += len(values)
    assert shown == len(found)


@pytest.mark.usefixtures("titles")
@pytest.mark.parametrize("page", ["README.md", "docs/package.md"])
def test_gains_of_the_first_screen_are_those_of_the_result_files(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = re.findall(r"<!-- gains -->\n((?:\|.*\n)+)", (ROOT / page).read_text())
    lines = [cells(row) for row in table.splitlines()[2:]]
    second = next(i for i, (title, *_) in enumerate(lines) if title.startswith("**a small network"))
    checked = 0
    for study, gca, part in (
        ("docs/evidence_pictures", "gca_published", lines[1:second]),
        ("docs/evidence", "gca", lines[second + 1 :]),
    ):
        printed = summary_of(study, capsys)
        for title, *shown in part:
            title, _, kept = title.partition(", ")
            rows = ("", "norm_classifier_own_rate", "", "", "") if kept else ()
            rows = rows or ("none", "norm_classifier", "norm_hardest", gca, "none_double")
            assert shown == [printed.get(name, {}).get(loss_name(title), "") for name in rows], title
            assert kept in ("", "learning rate of the loss alone")
            checked += sum(map(bool, shown))
    assert checked > 25


@pytest.mark.usefixtures("titles")
def test_the_cheap_form_beside_the_whole_backbone_is_that_of_the_result_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The table has every row that both forms were trained with, with multi-similarity."""
    page = (ROOT / "docs" / "evidence_fine_tuning.md").read_text()
    (table,) = re.findall(r"<!-- agreement -->\n((?:\|.*\n)+)", page)
    whole, cheap = (summary_of(f"docs/evidence_{study}", capsys) for study in ("pictures", "frozen"))
    both = {name: [form[name]["multi_similarity"] for form in (whole, cheap)] for name in whole if name in cheap}
    rows = [[name, *shown] for name, shown in both.items() if all(shown)]
    assert len(rows) > 9
    assert [cells(row) for row in table.splitlines()[2:]] == rows

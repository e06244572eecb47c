"""Pages name what exists, show commands that the scripts accept, and agree with the result files."""

import importlib
import pkgutil
import re
import shlex
from functools import cache
from importlib.metadata import metadata
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from helpers.pages import DOCS, PAGES, ROOT

import pml_gca
from pml_gca import GlobalCorrelationGenerator
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.losses import NAMED_LOSSES
from pml_gca.paper.recipes import RECIPES

EACH_OF_DOCS, EACH_PAGE = (
    pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])
    for pages in (DOCS, PAGES)
)


def commands(page: Path) -> list[list[str]]:
    """Return each `python` or `torchrun` of an example on a page, as the shell's words from the script on."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"\b(?:python|torchrun --nproc-per-node \d+) (examples/[^\n`&|;]*)", text)
    return [shlex.split(line, comments=True) for line in found]


def options_of(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the options that a script's help lists."""
    path = ROOT / script
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(path.stem).main(["--help"])
    assert stopped.value.code == 0
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, flags=re.MULTILINE))


def test_there_are_pages_with_commands() -> None:
    assert {"performance.md", "reproducing.md"} <= {page.name for page in DOCS}
    found = {command[0] for page in PAGES for command in commands(page)}
    assert {
        f"examples/{name}.py"
        for name in ("reproduce", "evaluate_checkpoint", "train_with_classifier", "train_distributed")
    } <= found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page, and those that the site gives API entries."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    entries = set(re.findall(r"^::: (\S+)", text, flags=re.MULTILINE))
    members = {f"{entry}.{name}" for entry in entries for name in dir(pkgutil.resolve_name(entry))}
    return entries | members | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH_PAGE
def test_links_anchors_and_pictures_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@EACH_PAGE
def test_rows_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    head = None
    for line in page.read_text().splitlines():
        line = line.strip()
        if not line.startswith("|"):
            head = None
            continue
        size = len(re.findall(r"(?<!\\)\|", line))
        head = head or size
        assert line.endswith("|"), line
        assert size == head, line


@EACH_PAGE
def test_scripts_accept_the_commands(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script, *words in commands(page):
        assert (ROOT / script).is_file(), script
        known = options_of(script, monkeypatch, capsys)
        assert "--help" in known
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known
        assert not unknown, f"{script} has no {', '.join(unknown)}"


@EACH_PAGE
def test_scripts_have_the_options_named_in_the_text(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = {command[0] for command in commands(page)}
    known = set().union(*(options_of(script, monkeypatch, capsys) for script in scripts))
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = {word for code in re.findall(r"`(--[^`]+)`", text) for word in code.split() if word.startswith("--")}
    assert named <= known, f"no script has {', '.join(named - known)}"


@EACH_PAGE
def test_recipes_and_losses_in_commands_exist(page: Path) -> None:
    text = page.read_text()
    recipes = set(re.findall(r"--recipe (\w+)", text))
    assert recipes <= set(RECIPES)
    if page.name == "reproducing.md":
        assert recipes == set(RECIPES)
    losses = set(re.findall(r"--loss ([\w:]+)", text))
    assert {loss for loss in losses if ":" not in loss} <= set(NAMED_LOSSES)


@cache
def known_classes() -> dict[str, list[type]]:
    """Return the classes of pml_gca, of PML and of torch that pages name, by their name."""
    found: dict[str, list[type]] = {}
    for package in (pml_gca, pytorch_metric_learning, torch.nn.parallel):
        names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        for module in map(importlib.import_module, (package.__name__, *names)):
            for name, value in vars(module).items():
                if isinstance(value, type):
                    found.setdefault(name, []).append(value)
    return found


@EACH_PAGE
def test_classes_named_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    kinds = "Calculator|Generator|Loss|Memory|Miner|Parallel|Regularizer|Sampler|Similarity|Trainer|Wrapper"
    for code in re.findall(r"`([^`]+)`", text):
        for name, member in re.findall(rf"\b([A-Z]\w*(?:{kinds}))\b(?:\.(\w+))?", code):
            assert name in known_classes(), f"{page.name}: {code}"
            assert not member or any(hasattr(kind, member) for kind in known_classes()[name]), f"{page.name}: {code}"


@EACH_OF_DOCS
def test_extras_exist(page: Path) -> None:
    extras = metadata("pml-gca").get_all("Provides-Extra")
    for found in re.findall(r"pip install .*?\[([\w,-]+)\]", page.read_text()):
        assert set(found.split(",")) <= set(extras), found


def reported(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the rows of the tables that a `compare_generators.py ... --report` prints."""
    importlib.import_module("compare_generators").main(words)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def cells(row: str) -> list[str]:
    """Return the texts of a table's row."""
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_counted_costs_of_classified_generators() -> None:
    """The page gives the multiply-adds and memory of a step as shares of those of GCA-HNG with as many layers."""
    page = (ROOT / "docs" / "performance.md").read_text()
    learned = {layers: GlobalCorrelationGenerator(100, 512, num_layers=layers).cost(81, 3) for layers in (1, 2)}
    hardest = HardestNegativeGenerator(100, 512)
    classified = {layers: ClassifiedGenerator(hardest, num_layers=layers).cost(81, 3) for layers in (0, 1, 2)}
    one, two = (classified[layers].multiply_adds / learned[layers].multiply_adds for layers in (1, 2))
    assert f"| {one:.2f} with one layer, {two:.2f} with two, counted |" in page
    one, two = (classified[layers].bytes / learned[layers].bytes for layers in (1, 2))
    assert f"| {one:.1f}, {two:.1f}, estimated |" in page
    assert classified[0].multiply_adds < 0.01 * learned[2].multiply_adds
    assert f"| {classified[0].bytes / learned[2].bytes:.2f}, estimated |" in page


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
    results, conditions = re.findall(r"<!-- summary -->\n((?:\|.*\n)+)", summary.read_text())
    checked = 0
    for table, of in ((results, (1, 2, 3)), (conditions, (4, 5))):
        for title, *shown in [cells(row) for row in table.splitlines()[2:]]:
            assert title in titles
            for number, text in zip(of, shown, strict=True):
                values = re.findall(r"[+-]?\d+\.\d ± \d+\.\d|\d+\.\d\d ×", text)
                assert set(values) <= set(columns[number].get(title, ())), (title, text)
                assert bool(values) == (title in columns[number]), (title, text)
                checked += len(values)
    assert checked > 70
    (others,) = re.findall(r"<!-- fine-tuning -->\n((?:\|.*\n)+)", summary.read_text())
    everywhere = [line for line in summary.read_text().splitlines() if "±" in line and cells(line)[0] in titles]
    assert set(everywhere) <= set((results + conditions + others).splitlines())


def test_tables_of_fine_tuning_are_those_of_the_result_files(
    titles: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "evidence_fine_tuning.md").read_text()
    tables = re.findall(r"<!-- (--out \S+ --summary.*?) -->\n((?:\|.*\n)+)", page)
    assert len(tables) == 4
    for words, table in tables:
        assert table.splitlines() == reported(words.split(), capsys)


def summary(study: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """Return the cells that `--summary` prints, by contender and loss; what a contender is comes as "what it is"."""
    head, _, *rows = [cells(row) for row in reported(["--out", study, "--summary"], capsys)]
    return {name: dict(zip(head[1:], shown, strict=True)) for name, *shown in rows}


def loss_name(title: str) -> str:
    """Return the name of a loss by its title in the pages."""
    return title.lower().replace("-", "_").replace(" ", "_").replace("supcon", "sup_con")


def test_fine_tuning_in_short_is_that_of_the_result_files(titles: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row of the summary has the cells of the row of the same title that the command prints."""
    printed = {row["what it is"]: row for row in summary("docs/evidence_pictures", capsys).values()}
    (table,) = re.findall(r"<!-- fine-tuning -->\n((?:\|.*\n)+)", (ROOT / "docs" / "evidence.md").read_text())
    head, _, *lines = [cells(row) for row in table.splitlines()]
    assert len(lines) > 10
    for title, *shown in lines:
        assert shown == [printed[title][loss_name(column)] for column in head[1:]], title


@pytest.mark.parametrize("page", ["README.md", "docs/package.md"])
def test_gains_of_the_first_screen_are_those_of_the_result_files(
    page: str, titles: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (table,) = re.findall(r"<!-- gains -->\n((?:\|.*\n)+)", (ROOT / page).read_text())
    lines = [cells(row) for row in table.splitlines()[2:]]
    second = next(i for i, (title, *_) in enumerate(lines) if title.startswith("**a small network"))
    checked = 0
    for study, gca, part in (
        ("docs/evidence_pictures", "gca_published", lines[1:second]),
        ("docs/evidence", "gca", lines[second + 1 :]),
    ):
        printed = summary(study, capsys)
        for title, *shown in part:
            rows = ("none", "norm_classifier", "norm_hardest", gca, "none_double")
            assert shown == [printed.get(name, {}).get(loss_name(title), "") for name in rows], title
            checked += sum(map(bool, shown))
    assert checked > 25

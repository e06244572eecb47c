"""The notebook runs from top to bottom, and its kept outputs are of such a run."""

import ast
import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pages import ROOT
from matplotlib.figure import Figure

NOTEBOOK = ROOT / "examples" / "first_hour.ipynb"
PAGE = ROOT / "docs" / "first_hour.md"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
RUNS = ("N-pairs", "N-pairs + hardest real negatives and a classifier", "N-pairs + GCA-HNG")
SHORT = {"ITERATIONS": 5, "EVALUATE_EVERY": 5, "DEVICE": torch.device("cpu")}


def python_of(cell: dict[str, Any]) -> str:
    """Return the code of a cell; `pass` stands for what is IPython's own."""
    return re.sub(r"^( *)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)


def run(cell: dict[str, Any], namespace: dict[str, Any]) -> object:
    """Run a cell. Return the value of its last line, which IPython would show."""
    tree, shown = ast.parse(python_of(cell)), None
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        tree.body.pop()
        shown = ast.Expression(last.value)
    try:
        exec(compile(tree, cell["id"], "exec", dont_inherit=True), namespace)
        return eval(compile(shown, cell["id"], "eval", dont_inherit=True), namespace) if shown else None
    except Exception as error:
        raise AssertionError(f"{cell['id']}: {type(error).__name__}: {error}\n{''.join(cell['source'])}") from error


def outputs_of(cell: dict[str, Any]) -> tuple[str, list[bytes]]:
    """Return what a cell printed, and its pictures."""
    printed = "".join("".join(output.get("text", ())) for output in cell["outputs"])
    pictures = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
    return printed, [base64.b64decode(picture) for picture in pictures]


def shape_of(text: str) -> str:
    """Return a text without its numbers and its padding."""
    return re.sub(r"[+-]?\d[\d.]*(e[+-]?\d+)?|[ -]+", " ", text)


def test_it_runs_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell prints and draws what the kept outputs show, but for the numbers."""
    namespace: dict[str, Any] = {"__name__": "notebook"}
    figures = 0
    for cell in CODE:
        value = run(cell, namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert SHORT.keys() <= namespace.keys()
            namespace |= SHORT
        printed, pictures = outputs_of(cell)
        assert shape_of(capsys.readouterr().out) == shape_of(printed), cell["id"]
        assert isinstance(value, Figure) == bool(pictures), cell["id"]
        figures += bool(pictures)
    assert figures == 5
    assert tuple(namespace["results"]) == RUNS
    for result in namespace["results"].values():
        assert result["history"]["iterations"] == [5]
        assert 0 < result["history"]["recall_at_1"][0] < 1
    hardest, learned = namespace["panels"].values()
    assert len(hardest.synthetic) == len(learned.synthetic) == 16 * 4
    real = {tuple(row) for row in hardest.embeddings.tolist()}
    assert {tuple(row) for row in hardest.synthetic.tolist()} <= real
    assert not {tuple(row) for row in learned.synthetic.tolist()} & {tuple(row) for row in learned.embeddings.tolist()}


def test_an_error_names_its_cell() -> None:
    with pytest.raises(AssertionError, match=r"cell-07: ZeroDivisionError: division by zero\n%time"):
        run({"id": "cell-07", "source": ["%time\n", "1 / 0"]}, {})


def test_kept_outputs_are_of_one_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    for cell in CODE:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result"), cell["id"]
            assert output.get("name", "stdout") == "stdout", cell["id"]


def test_the_file_is_small_and_tells_nothing_of_where_it_ran() -> None:
    text = NOTEBOOK.read_text()
    assert len(text.encode()) < 400_000
    readable = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(root|home|tmp|Users|usr|content)\b|file://|\\\\|\d{4}-\d\d-\d\d", readable)
    notebook = json.loads(text)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert [cell["metadata"] for cell in CELLS if cell["metadata"]] == [{"tags": ["parameters"]}]
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        wanted = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == wanted | ({"execution_count", "outputs"} if cell in CODE else set())


def test_links_lead_somewhere() -> None:
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]
    assert len(targets) > 8
    for target in targets:
        name, _, anchor = target.partition("#")
        page = NOTEBOOK.parent / name
        assert page.is_file(), target
        headings = re.findall(r"^#+ (.*)", page.read_text().lower(), flags=re.MULTILINE)
        assert not anchor or anchor in [heading.replace(" ", "-") for heading in headings], target


def test_numbers_in_the_text_are_in_the_outputs_or_in_evidence() -> None:
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    printed = "\n".join(outputs_of(cell)[0] for cell in CODE)
    evidence = (ROOT / "docs" / "evidence.md").read_text()
    gains, intervals = re.findall(r"[+-]\d+\.\d(?! ±)", text), re.findall(r"\d+\.\d ± \d+\.\d", text)
    assert len(gains) == 2
    assert len(intervals) == 5
    assert [gain for gain in gains if f" {gain} |" not in printed] == []
    assert [interval for interval in intervals if interval not in evidence] == []


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables in a text, without rules."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


def test_the_page_shows_the_kept_results() -> None:
    [table] = [printed for cell in CODE if "| N-pairs" in (printed := outputs_of(cell)[0])]
    page = PAGE.read_text()
    assert [row[0] for row in rows_of(table)[1:4]] == [*RUNS]
    assert rows_of(table) == rows_of(page)
    kept = [picture for cell in CODE for picture in outputs_of(cell)[1]]
    shown: list[Path] = [PAGE.parent / name for name in re.findall(r"!\[[^]]*\]\((\w+\.png)\)", page)]
    assert len(shown) == 2
    for path in shown:
        assert path.read_bytes() in kept, path.name

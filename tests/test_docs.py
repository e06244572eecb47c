"""Pages name what exists, show commands that the scripts accept, and agree with the result files."""

import importlib
import pkgutil
import re
from functools import cache
from importlib.metadata import metadata
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from helpers.pages import DOCS, PAGES, ROOT, commands

import pml_gca
from pml_gca import GlobalCorrelationGenerator
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.losses import NAMED_LOSSES
from pml_gca.paper.recipes import RECIPES

EACH_OF_DOCS, EACH_PAGE = (
    pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])
    for pages in (DOCS, PAGES)
)


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

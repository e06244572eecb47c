"""The wheel holds the package, the source distribution all that tests need, and their metadata and changelog agree."""

import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from typing import Any

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from helpers.pages import PAGES, ROOT, blocks_of
from pytorch_metric_learning.losses import NPairsLoss

import pml_gca
from pml_gca import generators

CHANGELOG, README = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "README.md"))
FOLDERS = (".github", "docs", "examples", "pml_gca", "tests")
FILES = {".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml", "setup.cfg"}
NO_SOURCE = {"__pycache__", "site", ".cache", "cells"}  # caches, the built site, cells of unfinished comparisons


def sources(*folders: str) -> set[str]:
    """Return the files of folders of the project, by path, without those that are made."""
    found = (path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in found if not NO_SOURCE & {*path.parts}}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[zipfile.ZipFile, tarfile.TarFile]]:
    """Build wheel and source distribution from a copy in which the site was built and a comparison was stopped."""
    root, made = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("made")
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(*NO_SOURCE))
    (root / ".gitignore").write_text("")  # as where it is not heeded
    for name in ("docs/site/index.html", "docs/.cache/x.json", "docs/evidence/cells/x.json", "runs/x.csv"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("made")
    wheel, sdist = (next(make(str(root)).build(directory=str(made))) for make in (WheelBuilder, SdistBuilder))
    with zipfile.ZipFile(wheel) as opened, tarfile.open(sdist) as unpacked:
        yield opened, unpacked


@pytest.fixture(scope="module")
def described(distributions: tuple[zipfile.ZipFile, tarfile.TarFile]) -> Message:
    """Return the metadata of the wheel; the payload is the long description."""
    [name] = [name for name in distributions[0].namelist() if name.endswith("/METADATA")]
    return message_from_string(distributions[0].read(name).decode())


def test_the_wheel_holds_the_package_alone(distributions: tuple[zipfile.ZipFile, tarfile.TarFile]) -> None:
    info = f"pml_gca-{pml_gca.__version__}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert set(distributions[0].namelist()) == sources("pml_gca") | about


def test_the_source_distribution_holds_all_sources(distributions: tuple[zipfile.ZipFile, tarfile.TarFile]) -> None:
    files = {member.name.partition("/")[2] for member in distributions[1].getmembers() if member.isfile()}
    assert files == sources(*FOLDERS) | FILES | {"PKG-INFO"}


def test_the_top_level_is_listed() -> None:
    """A new file at the top would be in no distribution."""
    assert {path.name for path in ROOT.iterdir() if path.is_file() and path.name[0] != "."} <= FILES | {"PKG-INFO"}


def test_metadata(described: Message) -> None:
    assert described["Version"] == pml_gca.__version__
    assert (described["License-Expression"], described["Author"]) == ("MIT", "pml-gca contributors")
    assert described["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in described.get_all("Classifier", [])
    assert all(re.fullmatch(r"[\w-]+, https://\S+", url) for url in described.get_all("Project-URL", []))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_the_description_is_the_first_screen_of_the_readme(described: Message) -> None:
    text = described.get_payload()
    assert isinstance(text, str)
    parts = re.findall(r"```.*?```|^\|.*?\n\n", text, flags=re.DOTALL | re.MULTILINE)
    assert len(parts) == 2  # code and a table
    for part in parts:
        assert part in README
    for link in re.findall(r"\]\(([^)]+)\)", without_code(text)):
        assert link.startswith("https://"), link
    for path in re.findall(r"`(docs/[\w./]+)`", without_code(text)):
        assert (ROOT / path).exists(), path


def test_changelog_and_citation_have_the_version() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text())
    assert versions[0] == (pml_gca.__version__, citation["date-released"])
    assert citation["version"] == pml_gca.__version__
    paper = citation["preferred-citation"]
    assert paper["authors"][0]["family-names"] == "Peng"
    assert paper["url"] in README


def replacements() -> list[str]:
    """Return the code that the changelog says to write instead."""
    table = CHANGELOG.partition("| 0.1.0 | write instead |\n")[2].partition("\n\n")[0]
    return [code for row in table.splitlines()[1:] for code in re.findall(r"`([^`]+)`", row.strip("|").split("|")[1])]


def test_what_to_write_instead_works() -> None:
    names: dict[str, Any] = {**vars(generators), "C": 7, "D": 16}
    made = [eval(code, names) for code in replacements() if re.match(r"[A-Z]\w+\(", code)]
    assert len(made) == 4
    for generator in made:
        pml_gca.HardNegativeGenerationLoss(NPairsLoss(), generator)


def test_the_workflow_tests_the_oldest_versions_and_runs_the_documented_commands(described: Message) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    jobs = workflow["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    floors = dict(re.findall(r"([\w-]+)>=([\d.]+)", "\n".join(described.get_all("Requires-Dist", []))))
    assert f">={matrix['python'][0]}" == described["Requires-Python"]
    assert matrix["torch"][0].startswith(f"{floors['torch']}.")
    assert matrix["pml"][0].startswith(f"{floors['pytorch-metric-learning']}.")
    pythons = {*matrix["python"], *(job["python"] for job in matrix["include"])}
    known = {row.rpartition(" ")[2] for row in described.get_all("Classifier", []) if "Python :: 3." in row}
    assert pythons <= known
    commands = {
        step["run"] for name in ("lint", "docs", "distributions") for step in jobs[name]["steps"] if "run" in step
    }
    shown = "\n".join(block.code for page in PAGES for block in blocks_of(page) if block.language == "bash")
    for command in ("ruff check .", "ruff format --check .", "mypy", "python -m build", "twine check --strict dist/*"):
        assert command in commands
        assert command in shown
    [site] = [command for command in commands if command.startswith("zensical")]
    assert site in shown


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_have_what_github_asks_for(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in form["body"])
    for field in form["body"]:
        if field["attributes"].get("render") == "python" and "value" in field["attributes"]:
            exec(field["attributes"]["value"], {})

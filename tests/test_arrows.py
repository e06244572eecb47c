"""Which folders of the package may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pml_gca"


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, also inside functions."""
    package = ("pml_gca", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_imports_are_found_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    file = tmp_path / "losses" / "a.py"
    file.parent.mkdir()
    for line in (
        "import pml_gca.paper",
        "from ..paper.recipes import x",
        "from .. import paper",
        "from ..paper import x",
    ):
        file.write_text(f"def late():\n    {line}\n")
        assert any(name.startswith("pml_gca.paper") for name in imports(file)), line


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("paper", ("paper/",)),
        ("correlation.tiles", ("correlation/", "generators/synthesis.py")),
        ("correlation.sweeps", ("correlation/sweeps/", "correlation/propagation.py")),
    ],
)
def test_only_these_files_import_it(module, allowed):
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(f"{name}.".startswith(f"pml_gca.{module}.") for name in imports(path))
    }
    assert found
    assert {path for path in found if not path.startswith(allowed)} == set()


def test_processes_know_nothing_but_the_utilities():
    """The folder `distributed` serves losses, miners, generators and the graph."""
    found = {
        name.split(".")[1]
        for path in (PACKAGE / "distributed").rglob("*.py")
        for name in imports(path)
        if name.startswith("pml_gca.")
    }
    assert found == {"distributed", "utils"}

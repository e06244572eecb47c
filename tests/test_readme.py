"""What the README says is run."""

import re
from importlib.metadata import metadata, version
from pathlib import Path

import pml_gca

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_commands_name_what_is_there():
    extras = metadata("pml-gca").get_all("Provides-Extra")
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert re.search(r"\[(\w+)\]", command).group(1) in extras
    assert (ROOT / re.search(r"python (examples/\S+)", commands[0]).group(1)).exists()


def test_gains_are_those_of_the_page_of_evidence():
    table = re.search(r"<!-- gains -->\n(.*?)\n\n", README, flags=re.DOTALL).group(1)
    page = (ROOT / "docs" / "evidence.md").read_text()
    found = re.findall(r"[+-]\d+\.\d ± \d\.\d|\d\.\d\d ×", table)
    assert len(found) > 10
    for text in found:
        assert f"| {text} |" in page, text


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_version_and_public_names():
    assert version("pml-gca") == pml_gca.__version__
    assert (Path(pml_gca.__file__).parent / "py.typed").exists()
    for name in pml_gca.__all__:
        assert hasattr(pml_gca, name)

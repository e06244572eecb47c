"""Every code block of a page runs, in order, as if the page were one program."""

import re
from pathlib import Path

import pytest
import torch
from helpers.gathering.frameworks import PAGE as SEVERAL_PROCESSES
from helpers.pages import PAGES, ROOT, blocks_of, run

LANGUAGES = {"python", "bash", "text", ""}
COMMANDS = ("pip install", "python examples/", "python -m pytest", "python tests/", "zensical", "torchrun")
COMMANDS += ("mypy", "python -m build", "ruff check", "ruff format", "twine check")
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=[str(page.relative_to(ROOT)) for page in WITH_PYTHON])
def test_python_runs_and_prints_what_the_page_shows(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output stands in a block without a language right below. Memory is left out: it depends on what is free.

    The blocks with a name on the page about several processes run in several processes, by `helpers.gathering`.
    """
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "page"}
    printed = ""
    for block in blocks_of(page):
        if page == SEVERAL_PROCESSES and block.name:
            continue
        if block.language == "python" and block.is_run:
            run(block, namespace)
            printed = capsys.readouterr().out
        elif block.language == "python":
            compile(block.code, page.name, "exec")
        elif not block.language and block.follows:
            assert printed.partition("(activations")[0] == block.code.partition("(activations")[0], block.line


def test_blocks_are_of_known_languages_and_few_are_not_run() -> None:
    found = [block for page in PAGES for block in blocks_of(page)]
    fences = sum(len(re.findall(r"^ *```", page.read_text(), flags=re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(found)
    for block in found:
        assert block.language in LANGUAGES, f"{block.page}:{block.line}"
        for command in block.code.replace("\\\n", " ").splitlines() if block.language == "bash" else ():
            assert command.startswith(COMMANDS), f"{block.page}:{block.line}: {command}"
    python = [block for block in found if block.language == "python"]
    assert sum(block.is_run for block in python) > 5
    assert len([block for block in python if not block.is_run]) <= 5


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\ny = x / 0", r"page\.md:6: ZeroDivisionError: division by zero"),
        ("x = 1\n\ndef f(:", r"page\.md:7: SyntaxError"),
        ("import math\nmath.sqrt('a')", r"page\.md:6: TypeError"),
        ("def fail():\n    raise ValueError('late')", r"page\.md:6: ValueError: late"),
    ],
)
def test_a_block_that_fails_names_its_page_and_line(tmp_path: Path, code: str, says: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nText\n```python\n{code}\n```\n\n- item\n\n  ```python\n  fail()\n  ```\n")
    namespace: dict[str, object] = {}
    with pytest.raises(AssertionError, match=says):
        [run(block, namespace) for block in blocks_of(page)]

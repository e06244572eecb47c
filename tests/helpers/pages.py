"""The pages of the documentation, and their code blocks."""

import re
import shlex
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "site" not in path.relative_to(ROOT).parts)
ROOT_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*DOCS, *ROOT_PAGES, *sorted((ROOT / "examples").rglob("README.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)(?P<title>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of a page, whose first line of code follows `line`."""

    page: Path
    line: int
    language: str
    title: str
    code: str
    follows: bool  # nothing but an empty line separates it from the block before
    name: str  # from a comment above it; empty if there is none

    @property
    def is_run(self) -> bool:
        return "not run" not in self.title


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    text, found, end = page.read_text(), [], -1
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        follows = end >= 0 and not text[end : match.start()].strip()
        code = textwrap.dedent(match["code"])
        name = re.search(r"<!-- ([\w, ]+) -->\n$", text[: match.start()])
        title = match["title"].strip()
        found.append(Block(page, line, match["language"], title, code, follows, name[1] if name else ""))
        end = match.end()
    return found


def run(block: Block, namespace: dict[str, object]) -> None:
    """Run a block; an error says on which line of which page."""
    page = str(block.page.relative_to(ROOT) if block.page.is_relative_to(ROOT) else block.page)
    try:
        exec(compile("\n" * block.line + block.code, page, "exec", dont_inherit=True), namespace)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == page]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == page else [block.line, *lines][-1]
        raise AssertionError(f"{page}:{line}: {type(error).__name__}: {error}") from error


def commands(page: Path) -> list[list[str]]:
    """Return each `python` or `torchrun` of an example on a page, as the shell's words from the script on."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"\b(?:python|torchrun --nproc-per-node \d+) (examples/[^\n`&|;]*)", text)
    return [shlex.split(line, comments=True) for line in found]

"""The documentation site builds without a warning, has every public name, and links only to what exists."""

import inspect
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import pml_gca

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ["pml_gca", *(info.name for info in pkgutil.iter_modules(pml_gca.__path__, "pml_gca."))]
VERBATIM = {"code", "pre", "script", "style", "title"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
RAW = re.compile(
    r"`|\$|\*\*|\]\(|\|--|::|:(class|func|meth|ref|attr|mod|math):"
    r"|^\.\. |^#+ |^(Args|Example|Raises|Returns|Yields):\n|^(Args|Example):$"
    r"|(^|\n)\s*([-*]|\d+\.) \S.*\n\s*([-*]|\d+\.) ",
    flags=re.MULTILINE,
)
KNOWN_TEX = {r"\tfrac": r"\frac", r"\text": r"\mathrm", r"\qquad": r"\quad", r"\lVert": r"\|", r"\rVert": r"\|"}


@dataclass
class Page(HTMLParser):
    """What the tests need of an HTML file."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)  # the text of each, without code and formulas
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name) and tag != "base"]
        if "arithmatex" in (found.get("class") or ""):
            tag = "formula"
            self.formulas.append("")
        if tag not in VOID:
            self.open.append(tag)
        if not VERBATIM & {*self.open}:
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() not in (tag, "formula"):
            pass

    def handle_data(self, data: str) -> None:
        if "formula" in self.open:
            self.formulas[-1] += data
        elif self.paragraphs and not VERBATIM & {*self.open}:
            self.paragraphs[-1] += data


def build_command() -> str:
    """Return the command that the first page shows."""
    [command] = re.findall(r"^zensical build .*$", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    return command


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """Build the site from a copy of the sources, and return its pages by path."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, root / "docs", ignore=shutil.ignore_patterns("*.csv", "site", ".cache"))
    (root / "pml_gca").symlink_to(ROOT / "pml_gca")
    command = [sys.executable, "-m", *build_command().split()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]  # without colours
    assert done.returncode == 0, f"{shlex.join(command)}\n{said}"
    assert "No issues found" in said
    assert not re.search(r"griffe|warning", said, flags=re.IGNORECASE), said
    folder = root / "docs" / "site"
    assert not list(folder.rglob("*.csv"))
    return {str(file.relative_to(folder)): Page(file) for file in sorted(folder.rglob("*.html"))}


def test_every_source_is_a_page_in_the_navigation(site: dict[str, Page]) -> None:
    sources = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "site" not in path.relative_to(DOCS).parts}
    built = {name.removesuffix("/index.html").removesuffix("index.html") for name in site} - {"404.html"}
    pages = sources - {"package.md"}  # the description in the package
    assert built == {source.removesuffix(".md").removesuffix("index") for source in pages}
    config = (DOCS / "zensical.toml").read_text()
    assert sources == set(re.findall(r'"([\w/]+\.md)"', config)), "list each page in nav of docs/zensical.toml"


@cache
def target_of(page: Path, link: str) -> Path:
    """Return the file that a link leads to."""
    name = unquote(link.partition("#")[0].partition("?")[0])
    path = (page.parent / name).resolve() if name else page
    return path / "index.html" if path.is_dir() else path


def test_links_and_anchors_exist(site: dict[str, Page]) -> None:
    pages = {page.path: page for page in site.values()}
    checked = 0
    for name, page in site.items():
        for link in page.links if name != "404.html" else ():
            if re.match(r"\w+:", link):
                assert link.startswith(("https://", "data:")), f"{name}: {link}"
                continue
            target, anchor = target_of(page.path, link), unquote(link.partition("#")[2])
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in pages[target].ids, f"{name}: {link}"
            checked += bool(anchor)
    assert checked > 500


def public_objects() -> dict[str, object]:
    """Return what the `__init__` files export, by path; of modules, what they define in public."""
    found: dict[str, object] = {}
    for package in PACKAGES:
        module = import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                defined = {key: v for key, v in vars(value).items() if getattr(v, "__module__", None) == value.__name__}
                found |= {f"{module.__name__}.{name}.{key}": v for key, v in defined.items() if key[0] != "_"}
            elif name != "__version__":
                found[f"{module.__name__}.{name}"] = value
    return found


def test_every_public_name_is_on_an_api_page(site: dict[str, Page]) -> None:
    ids = set().union(*(page.ids for name, page in site.items() if name.startswith("api/")))
    loss, generator = "pml_gca.losses.HardNegativeGenerationLoss", "pml_gca.generators.GlobalCorrelationGenerator"
    inherited = ("clip_grad_norm_", "end_epoch", "generator_level", "logs", "metric_level", "parameter_groups", "phase")
    assert {*(f"{loss}.{name}" for name in inherited), f"{generator}.cost", f"{generator}.edge_chunk_size"} <= ids
    public = public_objects()
    assert {"pml_gca.GlobalCorrelationGenerator", "pml_gca.utils.runs.set_seed", "pml_gca.paper.RECIPES"} <= set(public)
    shown = [value for path, value in public.items() if path in ids]
    missing = {path for path, value in public.items() if path not in ids and not any(value is one for one in shown)}
    assert not missing, "add `::: name` to a page of docs/api"


def test_what_the_loss_inherits_is_on_its_page(site: dict[str, Page]) -> None:
    shown = {anchor.rpartition(".")[2] for anchor in site["api/losses/index.html"].ids}
    assert {"forward", "logs", "clip_grad_norm_", "parameter_groups", "phase", "end_epoch", "metric_level"} <= shown


def test_public_docstrings_are_shown(site: dict[str, Page]) -> None:
    """The first line of each is on an API page; code apart."""
    shown = " ".join(" ".join(page.paragraphs) for name, page in site.items() if name.startswith("api/"))
    words = set(re.findall(r"\w+", shown))
    for path, value in public_objects().items():
        if isinstance(value, (type, types.FunctionType)) and not isinstance(value, types.GenericAlias):  # 3.10: both
            first = re.sub(r"`[^`]*`|\$[^$]*\$", "", (inspect.getdoc(value) or "").partition("\n")[0])
            assert first, path
            assert set(re.findall(r"\w+", first)) <= words, path


def test_no_markup_is_left_unrendered(site: dict[str, Page]) -> None:
    for name, page in site.items():
        for text in page.paragraphs:
            found = RAW.search(text.strip())
            assert found is None, f"{name}: {text.strip()[:200]}"


def test_formulas_parse(site: dict[str, Page]) -> None:
    """Matplotlib's parser knows most of TeX; a few commands get a name that it knows."""
    parser = import_module("matplotlib.mathtext").MathTextParser("path")
    formulas = [(name, formula) for name, page in site.items() for formula in page.formulas]
    assert len(formulas) > 10
    for name, formula in formulas:
        tex = re.sub(r"^\\[(\[]|\\[)\]]$", "", formula.strip())
        for command, known in KNOWN_TEX.items():
            tex = tex.replace(command, known)
        try:
            parser.parse(f"${' '.join(tex.split())}$")
        except ValueError as error:
            raise AssertionError(f"{name}: {formula}") from error

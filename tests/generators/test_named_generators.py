"""Commands and docs know the same losses, generators and recipes by name."""

import re
from pathlib import Path

import pytest

import pml_gca.generators
from pml_gca import names
from pml_gca.generators import NAMED_GENERATORS, BaseGenerator, ClassifiedGenerator
from pml_gca.losses import NAMED_LOSSES
from pml_gca.paper import RECIPES

PAGE = Path(__file__).parents[2] / "docs" / "generators.md"


def test_names_are_those_of_the_tables() -> None:
    assert tuple(NAMED_LOSSES) == names.LOSSES
    assert tuple(NAMED_GENERATORS) == tuple(names.GENERATORS)
    assert tuple(RECIPES) == names.RECIPES
    assert names.LOSS_ALONE not in names.GENERATORS


@pytest.mark.parametrize("named", [NAMED_LOSSES, NAMED_GENERATORS])
def test_a_name_that_is_not_there_is_told_with_those_that_are(named: dict[str, object]) -> None:
    first = next(iter(named))
    with pytest.raises(KeyError, match=rf"no such name: '{first}s' \(did you mean {first}\?\); there are {first}, "):
        named[f"{first}s"]
    assert named.get("none of them") is None
    assert "none of them" not in named


def made_of(name: str) -> list[BaseGenerator]:
    """Return a named generator, and those inside it."""
    return [part for part in NAMED_GENERATORS[name](7, 8).modules() if isinstance(part, BaseGenerator)]


def test_every_generator_has_a_name() -> None:
    exported = (getattr(pml_gca.generators, name) for name in pml_gca.generators.__all__)
    classes = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, BaseGenerator)}
    assert {type(part) for name in NAMED_GENERATORS for part in made_of(name)} == classes - {BaseGenerator}


def rows_of_the_page() -> dict[str, str]:
    """Return the generator that the table on the page shows for each name."""
    table = PAGE.read_text().partition("<!-- named generators -->\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, flags=re.MULTILINE))


def test_the_page_lists_every_name() -> None:
    assert list(rows_of_the_page()) == list(NAMED_GENERATORS)


@pytest.mark.parametrize("name", NAMED_GENERATORS)
def test_the_page_shows_what_a_name_makes(name: str) -> None:
    shown = rows_of_the_page()[name]
    outer, *inner = made_of(name)
    assert re.findall(r"\w+Generator", shown) == [type(part).__name__ for part in (outer, *inner)]
    for option, value in re.findall(r"(\w+)=(\w+)", shown):
        assert str(getattr(outer, option)) == value
    if isinstance(outer, ClassifiedGenerator):
        assert len(outer.propagation.layers) == 0


@pytest.mark.parametrize("name", NAMED_GENERATORS)
def test_each_takes_keywords_and_options(name: str) -> None:
    made = NAMED_GENERATORS[name](num_classes=7, embedding_size=8, collect_stats=True)
    assert (made.num_classes, made.embedding_size, made.collect_stats) == (7, 8, True)

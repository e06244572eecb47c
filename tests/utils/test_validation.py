from pathlib import Path

import pytest

from pml_gca.paper import recipes
from pml_gca.utils.validation import first_of, suggestion


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [
        (0, 3, ""),
        (1, 3, "0"),
        (3, 3, "0, 1, 2"),
        (4, 3, "0, 1, 2 and 1 more"),
        (100, 1, "0 and 99 more"),
    ],
)
def test_first_of(count: int, limit: int, expected: str) -> None:
    assert first_of(range(count), limit) == expected


def test_five_names_are_shown_by_default() -> None:
    assert first_of([Path("a"), "b", 3, None, 1.5]) == "a, b, 3, None, 1.5"
    assert first_of("abcdef") == "a, b, c, d, e and 1 more"


def test_the_nearest_name_is_suggested() -> None:
    assert suggestion("cars", ["cub", "cars196", "cats"]) == " (did you mean cats?)"
    assert suggestion("cars19", (name for name in ("cub", "cars196", "cats"))) == " (did you mean cars196?)"


def test_no_suggestion_without_a_similar_name() -> None:
    assert suggestion("xyz", ["cub", "cars196"]) == ""
    assert suggestion("cub", []) == ""


def test_recipes_use_the_same_suggestion() -> None:
    assert recipes.suggestion is suggestion

"""Recipes changed by words, such as those of a command line."""

from collections.abc import Sequence
from dataclasses import fields, replace
from types import NoneType
from typing import Any, get_args

from ..utils.text import suggestion
from .recipe import GENERATOR_OPTIONS
from .recipes import Recipe

WORDS = {"true": True, "false": False}
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "none", str: "text"}


def changed_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with fields or options of its generator changed.

    Args:
        recipe: to change.
        changes: each ``"FIELD=VALUE"``, such as ``"alpha=3"``, ``"frozen=none"`` or ``"merging=hardest"``. Of several
            of one field the last counts.

    Raises:
        TypeError, ValueError: a word is none of these, or as for `Recipe`.
    """
    kinds = {f.name: f.type for f in fields(recipe) if f.name not in ("name", "generator_options")}
    kinds |= {name: option.annotation for name, option in GENERATOR_OPTIONS.items()}
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in kinds:
            meant = suggestion(name, kinds)
            raise ValueError(f"--set takes FIELD=VALUE, with FIELD one of {', '.join(kinds)}; got {change!r}{meant}")
        values[name] = read_value(name, text, kinds[name])
    options = {name: values.pop(name) for name in GENERATOR_OPTIONS if name in values}
    return replace(recipe, **values, generator_options={**recipe.generator_options, **options})


def read_value(name: str, text: str, kind: Any) -> Any:
    """A word as a value of a type, or of one of several.

    Raises:
        ValueError: it is none; the message says what ``name`` takes.
    """
    kinds = get_args(kind) or (kind,)
    word = text.strip()
    if NoneType in kinds and word.lower() == "none":
        return None
    if bool in kinds and word.lower() in WORDS:
        return WORDS[word.lower()]
    for number in (int, float):
        if number in kinds:
            try:
                return number(word)
            except ValueError:
                pass
    if str in kinds and word:
        return word
    expected = " or ".join(words for known, words in EXPECTED.items() if known in kinds)
    raise ValueError(f"--set {name} takes {expected}, got {text!r}")

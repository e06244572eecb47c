"""Names in figures as they are written: in any script that an installed font has, and with dollar signs."""

import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, ParamSpec

from .shared import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

LAST_RESORT = "Last Resort"  # a font of matplotlib that draws a box for every character


def any_script(plot: "Callable[Arguments, Figure]") -> "Callable[Arguments, Figure]":
    """Draw a figure with fonts that have the characters of all its texts, and take `$` for a dollar sign.

    A warning names characters that no installed font has. They are drawn as boxes.

    Args:
        plot: draws a figure; texts are among its arguments.
    """

    @wraps(plot)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> "Figure":
        matplotlib = import_matplotlib()
        families = families_for(texts_in((args, kwargs)))
        with matplotlib.rc_context({"font.family": families, "text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            return plot(*args, **kwargs)

    return drawn


def texts_in(value: object) -> Iterator[str]:
    """Yield all strings in a value, its members, keys and values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from texts_in(key)
            yield from texts_in(member)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for member in value:
            yield from texts_in(member)


def families_for(texts: Iterable[str]) -> list[str]:
    """Return the usual font families, followed by those that have the characters which these lack."""
    import_matplotlib()
    from matplotlib import font_manager, rcParams

    families = list(rcParams["font.family"])
    wanted = {ord(c) for text in texts for c in text if unicodedata.category(c)[0] not in "CZ"}
    missing = wanted - characters(font_manager.findfont(font_manager.FontProperties(family=families)))
    others: dict[str, frozenset[int]] = {}
    if missing:  # the files themselves: `findfont` logs a complaint for each family without a regular weight
        for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.style != "normal")):
            if not font.name.startswith(LAST_RESORT) and font.name not in others:
                others[font.name] = characters(font.fname)
    while missing:
        name = max(others, key=lambda name: len(missing & others[name]))
        found = missing & others[name]
        if not found:
            some = " ".join(sorted(map(chr, missing))[:10])
            warnings.warn(
                f"no installed font has {len(missing)} of the characters in names, such as {some}: they are drawn as "
                "boxes. Install a font that has them, such as Noto Sans CJK, and delete matplotlib's font cache "
                "(matplotlib.get_cachedir())",
                stacklevel=3,
            )
            break
        families.append(name)
        missing -= found
    return families


@cache
def characters(file: str) -> frozenset[int]:
    """Return the code points that a font file has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())

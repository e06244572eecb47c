"""Names in messages."""

import difflib
from collections.abc import Iterable, Sequence


def first_of(names: Sequence[object], limit: int = 5) -> str:
    """The first ``limit`` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(str(name) for name in names[:limit]) + more


def suggestion(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name, for the end of an error message; empty if nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

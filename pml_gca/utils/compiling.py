"""What compiled parts of a step need: a cache of their own, and a clear error at its limit."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

LIMIT = (
    "torch has compiled this for as many sizes and settings as it may (torch._dynamo.config.recompile_limit). Keep the "
    "batch size, for example by drop_last=True of the loader; start a memory when it is full (memory_start); compile "
    "after the last change of the generator's settings; or raise that limit"
)


def with_own_cache(function: Callable[..., Any]) -> FunctionType:
    """Return a copy of a function: torch counts how often it compiles each function, whoever calls it."""
    assert isinstance(function, FunctionType)
    copied = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def explained(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that says what to do if torch must compile it more often than it may.

    Raises:
        RuntimeError: when called, in that case, if it was compiled with `fullgraph=True`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if type(error).__name__ == "FailOnRecompileLimitHit" or "cache_size_limit reached" in str(error):
                raise RuntimeError(LIMIT) from error
            raise

    return call

"""Look at the callers of a function."""

import sys
from types import FrameType


def called_from(module: str) -> bool:
    """Return whether a function of the module, given by its full name, is among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    return frame is not None

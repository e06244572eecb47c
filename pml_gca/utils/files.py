"""Files that are written as a whole or not at all."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically: a killed process leaves the old file or the whole new one.

    Args:
        path: of the file.
        write: writes the new content to the path that it is called with.

    Raises:
        OSError: the content cannot be written, for example because the disk is full. An older file is as it was.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError, and names no path
        with suppress(OSError):
            temporary.unlink()
        raise OSError(
            f"{path} cannot be written ({error}); an older file there is as it was. Is the disk full, the folder "
            "missing, or not writable?"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8. Raise as `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically, as indented JSON. Raise as `write_atomically`."""
    write_text(path, json.dumps(content, indent=1) + "\n")

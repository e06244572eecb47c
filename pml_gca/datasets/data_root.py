"""Checks of a data set's folder, and a search nearby if it is another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path


def check_root(root: object) -> Path:
    """Return `root` as a path. Raise TypeError if it is not one."""
    if not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a path, found {type(root).__name__}: {root!r}")
    return Path(root)


def found_at(path: Path) -> str:
    """Describe what lies at `path`: a folder, a file or nothing."""
    return "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"


def nearby_root(root: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """Return a folder for which `is_root` holds: one of two parents of `root`, or a folder in it; else None."""
    with os.scandir(root) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir())
    candidates = [*root.resolve().parents[:2], *(root / name for name in inside)]
    return next((folder for folder in candidates if is_root(folder)), None)


def other_root(root: Path, is_root: Callable[[Path], bool]) -> str:
    """Return `nearby_root` as a question for an error message, empty if there is none."""
    found = nearby_root(root, is_root)
    return "" if found is None else f" (did you mean {found}?)"


def missing_images(paths: Sequence[str]) -> list[str]:
    """Return the paths that are not files. List each folder once: checking file by file is slow."""
    names: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names:
            names[folder] = _names_in(folder)
        if name not in names[folder]:
            missing.append(path)
    return missing


def _names_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False

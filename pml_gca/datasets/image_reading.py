"""Reading of many image files, with one error that names all unreadable ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..utils.optional_imports import import_pillow
from ..utils.validation import count_of, first_of
from .rgb import to_rgb, what_to_do

MANY = 500
"""A progress bar is shown from this many files on."""

_known_readable: set[int] = set()


def read_image(path: Path, size: int) -> Tensor:
    """Return a file as (3, size, size) uint8: upright, shorter side scaled to `size`, centre cut out."""
    image_module = import_pillow()
    from PIL import ImageOps

    square = ImageOps.fit(_read(path, 2 * size), (size, size), image_module.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def check_images(
    root: Path, files: Sequence[Path], *, progress: bool = True, skip: bool = False
) -> dict[Path, Exception]:
    """Decode every file, once per process. Raise a ValueError that counts and names those that fail.

    With `skip`, return their errors instead.
    """

    def check(row: int) -> None:
        status = files[row].stat()
        key = hash((str(files[row]), status.st_mtime_ns, status.st_size))
        if key not in _known_readable:
            _read(files[row], 1)
            _known_readable.add(key)

    failed = _failures(files, check, "checking images", progress=progress)
    if failed and not skip:
        raise _unreadable(root, failed, len(files))
    return failed


def load_images(root: Path, files: Sequence[Path], size: int, *, progress: bool = True, threads: int = 16) -> Tensor:
    """Read every file by `read_image`, (N, 3, size, size). Raise a ValueError that counts and names failures."""
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8, device="cpu")

    def load(row: int) -> None:
        images[row] = read_image(files[row], size)

    if failed := _failures(files, load, "loading images", progress=progress, threads=threads):
        raise _unreadable(root, failed, len(files))
    return images


def open_image(root: Path, path: Path) -> Any:
    """Return a file as an upright RGB image of PIL, in its own size. Raise a ValueError that names it if that fails."""
    try:
        return _read(path, None)
    except Exception as error:  # Pillow's plugins raise errors of many kinds on malformed files
        raise _unreadable(root, {path: error}, 1) from error


def _read(path: Path, size: int | None) -> Any:
    """Return a file as upright RGB, of `size` or larger; in its own size if that is None."""
    with import_pillow().open(path) as file:
        if size is not None and file.format in ("JPEG", "MPO"):
            file.draft("RGB", (size, size))  # decodes large photographs at a fraction of the cost
        return to_rgb(file)


def _failures(
    files: Sequence[Path], read: Callable[[int], None], what: str, *, progress: bool, threads: int = 16
) -> dict[Path, Exception]:
    """Call `read` with the row of each file. Return the errors of those that fail."""
    failed: dict[int, Exception] = {}

    def attempt(row: int) -> None:
        try:
            read(row)
        except Exception as error:  # Pillow's plugins raise errors of many kinds on malformed files
            failed[row] = error

    rows = range(len(files))
    bar = tqdm(desc=what, unit="image", total=len(files), disable=not progress or len(files) < MANY)
    with bar, ThreadPool(min(threads, os.cpu_count() or 1)) if threads > 1 else nullcontext() as pool:
        for _ in map(attempt, rows) if pool is None else pool.imap(attempt, rows, chunksize=8):
            bar.update()
    return {files[row]: failed[row] for row in sorted(failed)}


def _unreadable(root: Path, failed: Mapping[Path, Exception], total: int) -> ValueError:
    names = [path.relative_to(root) for path in failed]
    by_kind: dict[str, list[Exception]] = defaultdict(list)
    for error in failed.values():
        by_kind[type(error).__name__].append(error)
    reasons = [f"{len(errors)} for {kind}, such as: {errors[0]}" for kind, errors in by_kind.items()]
    remedies = dict.fromkeys(what_to_do(error) for error in failed.values())
    them = "it" if len(failed) == 1 else "them"
    return ValueError(
        f"{len(failed)} of {count_of(total, 'image')} in {root} cannot be read: {first_of(names)} "
        f"({'; '.join(reasons)}); {'; '.join(remedies)}, or remove {them}, or leave {them} out by unreadable='skip' "
        "(--unreadable skip in the examples)"
    )

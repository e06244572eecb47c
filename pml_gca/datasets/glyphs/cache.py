"""A cache of the rendered glyphs between runs, one .npz file per image size."""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .render import FACES, Rendering, import_font_packages

FORMAT_VERSION = 1
"""Raise this whenever the rendering, the look-alike rule or the file's layout changes."""

_warned: set[str] = set()


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/pml_gca`, or `~/.cache/pml_gca` if that variable is unset or empty."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pml_gca"


def cache_path(cache_dir: str | os.PathLike[str] | None, image_size: int) -> Path:
    """Return the file for an image size, the installed matplotlib (fonts) and Pillow (rasteriser)."""
    matplotlib, pil = import_font_packages()
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    key = f"v{FORMAT_VERSION}-{image_size}px-matplotlib{matplotlib.__version__}-pillow{pil.__version__}"
    return folder / f"glyphs-{key}.npz"


def load_rendering(path: Path, image_size: int) -> Rendering | None:
    """Return the rendering stored at `path`, None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            rendering = Rendering(*(stored[name] for name in Rendering._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
    return rendering if _is_sound(rendering, image_size) else None


def _is_sound(rendering: Rendering, image_size: int) -> bool:
    images, labels, faces, codes = rendering
    count = len(images) if images.ndim else 0
    return (
        count > 0
        and images.shape == (count, image_size, image_size)
        and images.dtype == np.uint8
        and labels.shape == faces.shape == (count,)
        and codes.ndim == 1
        and all(array.dtype == np.int64 for array in (labels, faces, codes))
        and np.array_equal(np.unique(labels), np.arange(len(codes)))
        and bool(faces.min() >= 0 and faces.max() < len(FACES))
    )


def store_rendering(path: Path, rendering: Rendering) -> None:
    """Write `rendering` to `path` atomically. Warn once if the folder cannot be written to."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **rendering._asdict())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if str(path.parent) not in _warned:
            _warned.add(str(path.parent))
            warnings.warn(
                f"the rendered glyphs could not be saved in {path.parent} ({error}); they will be drawn again "
                "next time. Pass a writable folder as cache_dir=.",
                stacklevel=4,
            )

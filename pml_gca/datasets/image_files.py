"""Search for the image files of a folder of class folders, and for the files that are left out."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from ..utils.optional_imports import import_pillow
from ..utils.validation import count_of, first_of

NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow recognises but cannot draw itself."""

LAYOUT = (
    "expected <root>/<class>/<image>, or <root>/train/<class>/<image> and the same in test and val, with images of a "
    "format that Pillow reads, such as .jpg and .png"
)

HIDDEN = "hidden"
BROKEN_LINK = "broken link"
NO_IMAGE = "not named as an image that Pillow reads"
OUTSIDE = "outside of the class folders"
CIRCLE = "link to a folder that it lies in"
SPECIAL = "neither file nor folder"
EMPTY = "class folder without images"

SKIP_EMPTY = "To leave such folders out, give unreadable='skip' (--unreadable skip in the examples)"

_warned: set[str] = set()


def find_images(
    root: str | os.PathLike[str], *, skip_empty: bool = False
) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Find the image files of each class folder of `root`, subfolders included, and the files that are left out.

    An image is a file with an ending that Pillow reads, in upper or lower case. A file without an ending is one if
    Pillow finds an image in it.

    Args:
        root: the folder.
        skip_empty: leave out class folders without images, instead of raising an error.

    Returns:
        The files of each class, classes and files sorted by name, and the reason for each file or link that is left
        out. Hidden files, and files beside the class folders, count as left out if they are named as images. With
        `skip_empty`, class folders without images are among them.

    Raises:
        ValueError: `root` is not a folder, holds no class folder, or a class folder holds no image; with `skip_empty`,
            if none holds one.
    """
    folder = Path(root)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ValueError(f"root must be a folder of class folders; found {found} at {folder}; {LAYOUT}")
    search = _Search(image_endings())
    classes: dict[str, list[Path]] = {}
    shown = 0
    for path in sorted(folder.iterdir()):
        shown += not path.name.startswith(".")
        if path.is_dir():
            images = search.images_in(path, [_identity(folder)])
            if not path.name.startswith("."):
                classes[path.name] = images
        elif path.is_symlink() and not path.exists():
            search.left_out[path] = BROKEN_LINK  # to a class, perhaps
        elif path.suffix.lower() in search.endings:
            search.left_out[path] = HIDDEN if path.name.startswith(".") else OUTSIDE
    if not classes:
        others = count_of(shown, "other entry", "other entries")
        raise ValueError(f"{folder} holds no class folder, only {others}; {LAYOUT}")
    empty = [name for name, images in classes.items() if not images]
    if skip_empty and len(empty) < len(classes):
        search.left_out |= {folder / name: EMPTY for name in empty}
        classes = {name: images for name, images in classes.items() if images}
    elif empty:
        some = describe(
            folder, {path: why for path, why in search.left_out.items() if _class_of(folder, path) in empty}
        )
        held = f" ({some})" if some else ""
        verb = "holds" if len(empty) == 1 else "hold"
        raise ValueError(
            f"{count_of(len(empty), 'class folder')} of {folder} {verb} no image: {first_of(empty)}{held}; {LAYOUT}"
            + ("" if skip_empty else f". {SKIP_EMPTY}")
        )
    return classes, search.left_out


class _Search:
    """A walk through class folders that notes what it leaves out and why."""

    def __init__(self, endings: frozenset[str]) -> None:
        self.endings = endings
        self.left_out: dict[Path, str] = {}

    def images_in(self, folder: Path, above: list[tuple[int, int]], hidden: bool = False) -> list[Path]:
        """Return the images of a folder and its subfolders, sorted. `above` are the folders that it lies in."""
        hidden = hidden or folder.name.startswith(".")
        here = [*above, _identity(folder)]
        images = []
        for path in folder.iterdir():
            if path.is_dir():
                if _identity(path) in here:
                    self.left_out[path] = CIRCLE
                else:
                    images += self.images_in(path, here, hidden)
                continue
            reason = self._why_not(path, hidden or path.name.startswith("."))
            if reason is None:
                images.append(path)
            elif reason:
                self.left_out[path] = reason
        return sorted(images)

    def _why_not(self, path: Path, hidden: bool) -> str | None:
        """Return why a file is left out, None if it is an image, or "" if nobody would expect an image there."""
        named = path.suffix.lower() in self.endings
        if hidden:
            return HIDDEN if named else ""
        if not path.is_file():
            return SPECIAL if path.exists() else BROKEN_LINK
        return None if named or (not path.suffix and _holds_image(path)) else NO_IMAGE


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _class_of(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0]


def image_endings() -> frozenset[str]:
    """Return the endings, in lower case, of the files that Pillow reads, with those of installed plugins."""
    image_module = import_pillow()
    image_module.init()
    known = image_module.registered_extensions().items()
    # MPO is several JPEGs in one file. The JPEG plugin reads it.
    return frozenset(e for e, kind in known if (kind in image_module.OPEN or kind == "MPO") and kind not in NO_PICTURES)


def _holds_image(path: Path) -> bool:
    image_module = import_pillow()
    try:
        with image_module.open(path) as image:
            return image.format not in NO_PICTURES
    except image_module.DecompressionBombError:
        return True
    except Exception:  # Pillow's plugins raise errors of many kinds
        return False


def describe(root: Path, left_out: Mapping[Path, str]) -> str:
    """Return each reason with the number of its files and the first of them; empty if there are none."""
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for path, reason in left_out.items():
        by_reason[reason].append(path.relative_to(root))
    return "; ".join(f"{reason} ({len(paths)}): {first_of(sorted(paths), 10)}" for reason, paths in by_reason.items())


def warn_left_out(root: Path, left_out: Mapping[Path, str], stacklevel: int = 3) -> None:
    """Warn about the files that are left out. Warn once: they are the same for train, val and test."""
    if not left_out:
        return
    what = "entry" if EMPTY in left_out.values() else "file"
    verb = "is" if len(left_out) == 1 else "are"
    message = f"{count_of(len(left_out), what, 'entries' if what == 'entry' else None)} {verb} left out of {root}: "
    message += describe(root, left_out)
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=stacklevel)

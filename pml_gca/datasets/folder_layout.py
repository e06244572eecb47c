"""The two layouts of a user's own images: class folders, or class folders in train, val and test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..utils.validation import count_of, first_of
from .image_files import find_images
from .splits import DEFAULT_FRACTIONS, SPLITS, split_classes

CLASSES_OF_A_SPLIT = {"train": 2, "val": 1, "test": 2}
LIKE_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder.

    Attributes:
        files: paths by the name of the class, classes and paths sorted by name.
        left_out: the reason for each file, or class folder without images, that is left out.
        given: names of the classes of each split, if the folder has `train`, `test` and perhaps `val`; else None.
        notes: sentences about images in subfolders and classes of one image.
    """

    files: dict[str, list[Path]]
    left_out: dict[Path, str]
    given: dict[str, list[str]] | None
    notes: list[str]


def read_folder(root: str | os.PathLike[str], *, skip_empty: bool = False) -> FolderImages:
    """Find the images of a folder: `<root>/<class>/<image>`, or split already, `<root>/train/<class>/<image>`.

    It is split already if it has subfolders `train` and `test`, and perhaps `val`, no other ones, and all
    of these have subfolders.

    Args:
        root: the folder.
        skip_empty: leave out class folders without images, instead of raising an error.

    Raises:
        ValueError: as for `find_images`, or a class is in two splits, or two subfolders are named like splits and hold
            folders, but the layout is not the one above.
    """
    split_folders = _split_folders(Path(root))
    files: dict[str, list[Path]] = {}
    left_out: dict[Path, str] = {}
    given: dict[str, list[str]] = {}
    for split, folder in split_folders.items() if split_folders else [("", Path(root))]:
        found, others = find_images(folder, skip_empty=skip_empty)
        twice = sorted(found.keys() & files)
        if twice:
            raise ValueError(
                f"{count_of(len(twice), 'class folder')} of {folder} {'is' if len(twice) == 1 else 'are'} in another "
                f"split, too: {first_of(twice)}; expected each class in one of train, val and test. To split images of "
                f"the same classes differently, put them in <root>/<class>/<image>"
            )
        given[split] = list(found)
        files |= found
        left_out |= others
    return FolderImages(files, left_out, given if split_folders else None, notes_on(files))


def _split_folders(root: Path) -> dict[str, Path] | None:
    """Return the folders of the splits; None if the subfolders of `root` are classes, or there is no such folder."""
    if not root.is_dir():
        return None
    inside = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    alike = [folder for name, folder in inside.items() if name.lower() in LIKE_SPLITS]
    if len(alike) < 2 or not all(any(path.is_dir() for path in folder.iterdir()) for folder in alike):
        return None
    if not {"train", "test"} <= inside.keys() <= set(SPLITS):
        raise ValueError(
            f"{root} seems to be split already, but its folders are {first_of(sorted(inside))}; expected train, test "
            "and perhaps val, in lower case, and no other ones. Rename them, or move others elsewhere"
        )
    return {split: inside[split] for split in SPLITS if split in inside}


def notes_on(files: Mapping[str, list[Path]]) -> list[str]:
    """Say which class folders have images in subfolders, and which classes have one image alone."""
    notes = []
    nested = []
    for name, paths in files.items():
        folders = [path.parent.name for path in paths if path.parent.name != name]
        nested += [f"{name} ({folders[0]})"] if folders else []
    if nested:
        notes.append(
            f"{count_of(len(nested), 'class folder')} with images in subfolders, which count as images of the class "
            f"folder: {first_of(nested)}; if the subfolders are the classes, put them directly into the data folder"
        )
    single = [name for name, paths in files.items() if len(paths) == 1]
    if single:
        notes.append(
            f"{count_of(len(single), 'class', 'classes')} of one image: {first_of(single)}; a single image has no "
            "positive in training, and nothing to find in evaluation"
        )
    return notes


def classes_of_split(
    found: FolderImages, split: str, fractions: tuple[float, float, float], seed: int, root: Path
) -> list[str]:
    """Return the names of the classes of a split, sorted.

    Without given splits, `split_classes` makes them. With given ones but no `val`, it takes the share of val from the
    classes of `train`.

    Raises:
        ValueError: there are too few classes, or `fractions` or `seed` are given though all splits are.
    """
    if found.given is None:
        names = list(found.files)
        return [names[i] for i in split_classes(names, split, fractions, seed)]
    given = dict(found.given)
    if "val" not in given:
        share = fractions[1] / (fractions[0] + fractions[1])
        names = given["train"]
        if share and len(names) < 2 * CLASSES_OF_A_SPLIT["train"]:
            raise ValueError(
                f"{root / 'train'} must hold at least {count_of(2 * CLASSES_OF_A_SPLIT['train'], 'class folder')}, as "
                f"some are held out for the val split, found {len(names)}. Add more, or a folder {root / 'val'}"
            )
        parts = {
            own: [names[i] for i in split_classes(names, part, (1 - share, 0.0, share), seed)] if share else []
            for own, part in (("train", "train"), ("val", "test"))
        }
        given |= parts if share else {"val": []}
    elif fractions != DEFAULT_FRACTIONS or seed != 0:
        raise ValueError(f"fractions and seed have no effect on {root}, which has train, val and test: leave them out")
    least = CLASSES_OF_A_SPLIT[split]
    if len(given[split]) < least and not (split == "val" and not given["val"]):
        raise ValueError(
            f"{root / split} must hold at least {count_of(least, 'class folder')}, found {len(given[split])}"
        )
    return given[split]

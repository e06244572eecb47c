"""DeepFashion's In-shop Clothes Retrieval Benchmark, as a data set of PML's kind."""

from __future__ import annotations

import codecs
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_metric_learning.datasets.base_dataset import BaseDataset

from .data_root import check_root, found_at, other_root

STATUSES = {
    "train": ("train",),
    "query": ("query",),
    "gallery": ("gallery",),
    "test": ("query", "gallery"),
    "train+test": ("train", "query", "gallery"),
}
"""The statuses in the partition file of each split's images, in the order of the split."""

PARTITION = "list_eval_partition.txt"
HEADER = ["image_name", "item_id", "evaluation_status"]
NESTED = "In-shop Clothes Retrieval Benchmark"


class InShop(BaseDataset):
    """In-shop Clothes Retrieval: each photograph of `query` searches those of `gallery`.

    Query and gallery hold the same items, and train holds others. The data set cannot be downloaded
    automatically; see https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html.

    Args:
        root: folder with `list_eval_partition.txt` (there or in `Eval`) and the unpacked folder `img`
            (there or in `Img`). All may lie in a folder "In-shop Clothes Retrieval Benchmark" of `root`.
        split: `"train"`, `"query"`, `"gallery"`, `"test"` (query, then gallery) or `"train+test"`.
        transform: applied to the PIL image.
        target_transform: applied to the label.
        download: must be False.

    Attributes:
        paths: file of each image.
        labels: number of each image's item, 2 for `id_00000002`.

    An item is `(image, label)`, as in PML.

    Raises:
        TypeError: `root` is not a path.
        ValueError: `download` is true, `split` is unknown, something is missing in `root`, or the
            partition file is malformed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train+test",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        folder = check_root(root)
        if download:
            raise ValueError(_how_to_get(folder))
        if split not in STATUSES:
            raise ValueError(f"split must be one of {tuple(STATUSES)}, found {split!r}")
        if not folder.is_dir():
            found = f"{found_at(folder)} at {folder}"
            raise ValueError(f"root must be the folder of In-shop, found {found}; {_how_to_get(folder)}")
        super().__init__(root, split, transform, target_transform)

    def get_available_splits(self) -> list[str]:
        """Return the names of the splits."""
        return list(STATUSES)

    def generate_split(self) -> None:
        """Fill `paths` and `labels`. PML calls this once."""
        root = Path(self.root)
        partition, base = find_partition(root), find_image_base(root)
        if partition is None:
            raise ValueError(f"{PARTITION} is missing in {root}{_hint(root)}; {_how_to_get(root)}")
        if base is None:
            raise ValueError(f"the images (folder img) are missing in {root}{_hint(root)}; {_how_to_get(root)}")
        entries = read_partition(partition)
        rows = [row for wanted in STATUSES[self.split] for row in entries if row[2] == wanted]
        self.paths = [os.path.join(base, name) for name, _, _ in rows]
        self.labels = [item for _, item, _ in rows]

    def download_and_remove(self) -> None:
        """Raise ValueError: the data set cannot be downloaded automatically."""
        raise ValueError(_how_to_get(Path(self.root)))


def find_partition(root: Path) -> Path | None:
    """Return the partition file of `root`, None if there is none."""
    folders = (root, root / "Eval", root / NESTED, root / NESTED / "Eval")
    return next((folder / PARTITION for folder in folders if (folder / PARTITION).is_file()), None)


def find_image_base(root: Path) -> Path | None:
    """Return the folder that image names in the partition file are relative to, None if there is none."""
    # Look in Img first: on systems that ignore case, root seems to hold img if it holds Img.
    folders = (root / "Img", root, root / NESTED / "Img", root / NESTED)
    return next((folder for folder in folders if (folder / "img").is_dir()), None)


def read_partition(path: Path) -> list[tuple[str, int, str]]:
    """Return image name, item number and status of each image in a partition file.

    Raises:
        ValueError: a line is malformed, repeats an image, or names one outside the data set's folder. Or the number
            of images is not that of the first line.
    """
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = content.decode("utf-16" if wide else "utf-8-sig", errors="surrogateescape").splitlines()

    def malformed(number: int, expected: str) -> ValueError:
        found = repr(lines[number - 1]) if number <= len(lines) else "the end of the file"
        return ValueError(f"{path}, line {number}: found {found}, expected {expected}")

    if not lines or not re.fullmatch(r"\s*[0-9]+\s*", lines[0]):
        raise malformed(1, "the number of images")
    if len(lines) < 2 or lines[1].split() != HEADER:
        raise malformed(2, f"the header {' '.join(HEADER)!r}")
    rows = []
    lines_of: dict[str, list[int]] = {}
    for number, line in enumerate(lines[2:], start=3):
        columns = line.split()
        if not columns:
            continue
        item = re.fullmatch(r"id_([0-9]+)", columns[1]) if len(columns) == 3 else None
        if item is None or columns[2] not in STATUSES["train+test"]:
            raise malformed(number, "'<image name> id_<number> <train, query or gallery>'")
        if not _is_inside(columns[0]):
            raise malformed(number, "an image name from the folder img on, such as img/WOMEN/Dresses/...")
        lines_of.setdefault(posixpath.normpath(columns[0]), []).append(number)
        rows.append((columns[0], int(item[1]), columns[2]))
    if len(rows) != int(lines[0]):
        raise ValueError(
            f"{path}, line 1: found {int(lines[0])} as the number of images, expected {len(rows)}, the number of lines "
            "that follow; the file seems to be cut short or altered"
        )
    twice = next((numbers for numbers in lines_of.values() if len(numbers) > 1), None)
    if twice:
        raise malformed(twice[1], f"each image once, but it is in line {twice[0]}, too")
    return rows


def _is_inside(name: str) -> bool:
    """Return whether a relative name stays in its folder, on every system."""
    return not (name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"))


def _hint(root: Path) -> str:
    return other_root(root, lambda folder: bool(find_partition(folder) and find_image_base(folder)))


def _how_to_get(root: Path) -> str:
    return (
        "In-shop cannot be downloaded automatically, as it needs an agreement: get img.zip and "
        "list_eval_partition.txt of DeepFashion: In-shop Clothes Retrieval Benchmark, "
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html, and unpack img.zip; "
        f"expected {root / PARTITION} (or {root / 'Eval' / PARTITION}) and the folder {root / 'img'} "
        f"(or {root / 'Img' / 'img'}); all of it may lie in {root / NESTED}"
    )

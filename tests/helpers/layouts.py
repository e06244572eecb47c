"""Write tiny data sets to disk in the layout of the real ones, and load them without torchvision.

Train and test half have `classes` classes each. The images of each half include a greyscale, a palette, an RGBA and a
CMYK one, whatever their file extension is.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pml_gca.datasets import Benchmark, ClassSubset, load_benchmark

MODES = {1: ("L", "JPEG"), 2: ("P", "PNG"), 3: ("RGBA", "PNG"), 4: ("CMYK", "JPEG")}


def write_image(path: Path, label: int, number: int, size: int) -> None:
    """Write one image: a pattern of the class, and noise."""
    pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    noise = np.random.default_rng((label, number)).integers(0, 32, (size, size, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(pattern).resize((size, size)))
    mode, kind = MODES.get(number % 20, ("RGB", "JPEG"))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels // 8 * 7 + noise).convert(mode).save(path, format=kind)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_cub(root: Path, classes: int = 6, per_class: int = 4, size: int = 40) -> Path:
    """Write CUB-200-2011: train classes 1, 2, ...; test classes 101, 102, ..."""
    folder = root / "CUB_200_2011"
    images, labels = [], []
    for label in (*range(1, classes + 1), *range(101, classes + 101)):
        for i in range(per_class):
            number = len(images) + 1
            name = f"{label:03d}.Some_Bird/Some_Bird_{i:04d}_{number}.jpg"
            write_image(folder / "images" / name, label, number, size)
            images.append(f"{number} {name}")
            labels.append(f"{number} {label}")
    write_lines(folder / "images.txt", images)
    write_lines(folder / "image_class_labels.txt", labels)
    return root


def write_cars196(root: Path, classes: int = 6, per_class: int = 4, size: int = 40) -> Path:
    """Write Cars196: train classes 1, 2, ...; test classes 99, 100, ...; the files' own split differs."""
    names = [f"Make C/V Model {label} 2012" for label in range(1, 197)]
    lines: dict[str, list[str]] = {"train": [], "test": []}
    number = 0
    for label in (*range(1, classes + 1), *range(99, classes + 99)):
        for i in range(per_class):
            number += 1
            split = ("train", "test")[i % 2]
            file = f"{len(lines[split]) + 1:05d}.jpg"
            folder = root / "car_data" / "car_data" / split / names[label - 1].replace("/", "-")
            write_image(folder / file, label, number, size)
            lines[split].append(f"{file},1,2,{size - 1},{size},{label}")
    write_lines(root / "names.csv", names)
    for split, rows in lines.items():
        write_lines(root / f"anno_{split}.csv", rows)
    return root


def write_sop(root: Path, classes: int = 6, per_class: int = 4, size: int = 40) -> Path:
    """Write Stanford Online Products: consecutive class numbers, in one folder for each kind of product."""
    folder = root / "Stanford_Online_Products"
    kinds = ("bicycle_final", "cabinet_final")
    number = 0
    for split, first in (("train", 1), ("test", classes + 1)):
        lines = ["image_id class_id super_class_id path"]
        for label in range(first, first + classes):
            kind = label % 2
            for i in range(per_class):
                number += 1
                name = f"{kinds[kind]}/{110000 + label}_{i}.JPG"
                write_image(folder / name, label, number, size)
                lines.append(f"{number} {label} {kind + 1} {name}")
        write_lines(folder / f"Ebay_{split}.txt", lines)
    return root


def write_inshop(
    root: Path, classes: int = 6, per_class: int = 4, size: int = 40, partition_in: str = "Eval", images_in: str = "Img"
) -> Path:
    """Write In-shop: odd items for training; of even items, the first half of images are queries, the rest gallery."""
    rows = []
    for item in range(1, 2 * classes + 1):
        for i in range(per_class):
            name = f"img/WOMEN/Dresses/id_{item:08d}/{i + 1:02d}_1_front.jpg"
            write_image(root / images_in / name, item, len(rows) + 1, size)
            rows.append((name, f"id_{item:08d}", "train" if item % 2 else ("query", "gallery")[2 * i >= per_class]))
    lines = [f"{name:<70}{item:<15}{status}" for name, item, status in rows]
    header = f"{'image_name':<70}{'item_id':<15}evaluation_status"
    write_lines(root / partition_in / "list_eval_partition.txt", [str(len(rows)), header, *lines])
    return root


def write_folder(root: Path, classes: int = 6, per_class: int = 4, size: int = 40) -> Path:
    """Write a user's own images: one folder for each class."""
    for label in range(2 * classes):
        for i in range(per_class):
            write_image(root / f"class {label}" / f"{i}.jpg", label, per_class * label + i + 1, size)
    return root


WRITERS = {
    "cub": write_cub,
    "cars196": write_cars196,
    "sop": write_sop,
    "inshop": write_inshop,
    "folder": write_folder,
}


CLASSES, PER_CLASS = 6, 4
"""Classes of each half of a benchmark, and images of a class."""


def size_of(image: Any) -> Any:
    """A transform that keeps nothing but the size of an image."""
    return image.size


def load(name: str, root: Path, **arguments: Any) -> Benchmark:
    """Load a benchmark with `size_of` as its transforms."""
    return load_benchmark(name, root, **{"train_transform": size_of, "test_transform": size_of, **arguments})


def splits_of(benchmark: Benchmark) -> dict[str, ClassSubset]:
    """All splits by name."""
    assert benchmark.val is not None
    return {"train": benchmark.train, "val": benchmark.val, **benchmark.test}

"""Write characters in 16 fonts in the folder layout of CUB-200-2011, to try the paper's protocol without a download."""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

FIRST_TEST_CLASS = 101  # CUB trains on classes 1 to 100


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description="Write characters in 16 fonts in the folder layout of CUB-200-2011, to try the paper's protocol "
        "without a download."
    )
    parser.add_argument(
        "folder", type=Path, help="where to write the folder CUB_200_2011; created if it does not exist"
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=100,
        help="number of training classes, and of test classes (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size", type=int, default=256, help="side of the images, in pixels (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 2 <= args.classes <= 100:
        parser.error(f"--classes must lie in [2, 100], got {args.classes}")
    if args.image_size < 16:
        parser.error(f"--image-size must be at least 16, got {args.image_size}")
    root = args.folder / "CUB_200_2011"
    if root.exists():
        sys.exit(f"{root} exists already")
    if args.folder.exists() and not args.folder.is_dir():
        parser.error(f"folder must be a folder or not exist yet; {args.folder} is a file")

    from pml_gca.datasets import Glyphs  # takes seconds

    partial = root.with_name(f"{root.name}.partial")  # a stopped run leaves no half folder behind
    shutil.rmtree(partial, ignore_errors=True)
    names, labels = [], []
    for split, first in (("train", 1), ("test", FIRST_TEST_CLASS)):
        glyphs = Glyphs(split, image_size=128, augment=False)
        rows = [row for row, label in enumerate(glyphs.labels.tolist()) if label < args.classes]
        for row in tqdm(rows, desc=f"{split} images", unit="image"):
            label = first + int(glyphs.labels[row])
            name = f"{label:03d}.{ord(glyphs.classes[label - first]):04x}/{glyphs.face_index[row]:02d}.png"
            path = partial / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = (glyphs[row][0][0] * 255).round().byte().numpy()
            Image.fromarray(image).resize((args.image_size, args.image_size), Image.Resampling.BILINEAR).save(path)
            names.append(name)
            labels.append(label)
    lines = enumerate(zip(names, labels, strict=True), start=1)
    images, classes = zip(*((f"{i} {name}\n", f"{i} {label}\n") for i, (name, label) in lines), strict=True)
    (partial / "images.txt").write_text("".join(images))
    (partial / "image_class_labels.txt").write_text("".join(classes))
    partial.replace(root)
    print(f"{len(names)} images of {2 * args.classes} classes in {root}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nglyphs_as_cub.py: stopped; run the same command again")

"""A small folder of images, weights of a small backbone, and arguments of a comparison on them."""

import csv

import compare_generators
import numpy as np
import timm
import torch
from PIL import Image

BACKBONE = "test_efficientnet"  # timm's smallest


def make_pictures(root):
    """Make `root/folders`, 20 classes of 4 images, and `root/weights.pth`; return `root`."""
    source = np.random.default_rng(0)
    for label in range(20):
        (root / "folders" / f"class{label:02d}").mkdir(parents=True)
        for image in range(4):
            pixels = source.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "folders" / f"class{label:02d}" / f"{image}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model(BACKBONE).state_dict(), root / "weights.pth")
    return root


def arguments(made, out, *names, loss="multi_similarity"):
    """Return arguments for trials of one iteration and runs of two."""
    small = ["--image-size", "32", "--embedding-size", "8", "--trials", "1", "--trial-iterations", "1"]
    small += ["--iterations", "2", "--evaluate-every", "2", "--seeds", "1", "--processes", "1"]
    regime = ["--data", str(made / "folders"), "--backbone", BACKBONE, "--weights", str(made / "weights.pth")]
    return [*regime, *small, "--losses", loss, "--generators", *names, "--out", str(out)]


def rows(out):
    """Add the finished cells to the tables of a study; return its trials and runs by stage and contender."""
    compare_generators.main(["--add", "--out", str(out)])
    with (out / "runs.csv").open(newline="") as file:
        return {(row["stage"], row["contender"]): row for row in csv.DictReader(file)}

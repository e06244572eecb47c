"""Arguments of evaluate_checkpoint.py."""

import argparse
from pathlib import Path

from pml_gca.names import RECIPES
from pml_gca.utils.command_line import add_image_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description="Evaluate one of the authors' published checkpoints on the test classes of its data set, with "
        "PML's tester. Print Recall@K, MAP@R and R-precision in percent, as a Markdown table.",
        epilog="Example: evaluate_checkpoint.py --checkpoint bestR_1.pth --recipe resnet50_cub --data-root data/cub",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="FILE", help="a .pth file of the method's authors")
    add(
        "--recipe",
        required=True,
        metavar="NAME",
        help=f"recipe that it was trained with, which also names the data set: one of {', '.join(RECIPES)}",
    )
    add("--data-root", required=True, type=Path, metavar="DIR", help="folder of the data set")
    add("--batch-size", type=int, default=256, metavar="N", help="images per batch (default: %(default)s)")
    add("--image-size", type=int, default=224, metavar="S", help="side of the crops, in pixels (default: %(default)s)")
    add_image_options(parser)
    add("--out", type=Path, metavar="FILE.json", help="also write the results to this file, as numbers from 0 to 1")
    return parser

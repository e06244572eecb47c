"""Arguments of glyphs_as_cub.py."""

import argparse
from pathlib import Path


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

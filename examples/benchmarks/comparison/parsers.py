"""Command lines of compare_generators.py and draw_evidence.py. They load no torch: `--help` is shown at once."""

import argparse
import os
from pathlib import Path

from pml_gca.utils.command_line import add_unreadable_option

METRICS = ("recall_at_1", "mean_average_precision_at_r")
FIGURES = ("convergence", "gains", "ablations", "hardness", "negatives")


def compare_parser() -> argparse.ArgumentParser:
    """Return the parser of compare_generators.py."""
    parser = argparse.ArgumentParser(
        description="Train a small network on characters in 16 fonts, or a pretrained backbone on a folder of images, "
        "with each generator and loss. First, the same "
        "number of short trials for each (fewer where there are fewer choices) chooses hyperparameters on validation "
        "classes. Then the chosen ones are trained from scratch with several seeds, and tested once. You can stop at "
        "any time: the same command continues, and does no finished cell again. Without --out nothing is trained: the "
        "script says what it would train, and about how long that takes.",
        epilog="Example: compare_generators.py --losses n_pairs --generators none gca --seeds 2 --out runs/mine",
    )
    add = parser.add_argument
    losses = ["n_pairs", "multi_similarity", "proxy_anchor"]
    add("--losses", nargs="+", metavar="NAME", default=losses, help=f"(default: {' '.join(losses)})")
    add(
        "--generators",
        nargs="+",
        metavar="NAME",
        help="rows of the tables; without --out the script lists them (default: all that are listed, without parts of "
        "GCA-HNG; with --report, all)",
    )
    add("--data", type=Path, metavar="DIR", help="folder of class folders of images (default: characters in 16 fonts)")
    add_unreadable_option(parser)
    add("--backbone", metavar="NAME", help="model of timm to fine-tune on --data")
    add("--weights", type=Path, metavar="FILE", help="its pretrained weights (default: those that timm downloads)")
    add(
        "--freeze-through",
        metavar="MODULE",
        help="of the backbone: it and all before it stay as they are, and run once, for some distortions of each "
        "image, which makes training several times faster (default: all of the backbone is trained)",
    )
    add("--device", default="cpu", help="to train on, such as cuda (default: %(default)s)")
    add("--trials", type=int, default=6, help="for each generator and loss (default: %(default)s)")
    add("--trial-iterations", type=int, default=800, help="of a trial (default: %(default)s)")
    add("--seeds", type=int, default=5, help="0 to N - 1 (default: %(default)s)")
    add(
        "--screen",
        type=int,
        metavar="N",
        help="train N seeds of each contender, other ones than the runs', look at validation classes alone, and print "
        "their table (default: runs on test classes)",
    )
    add("--iterations", type=int, default=2000, help="of a run (default: %(default)s)")
    add("--embedding-size", type=int, default=64, help="channels (default: %(default)s)")
    add("--image-size", type=int, default=32, help="side of the images, in pixels (default: %(default)s)")
    add(
        "--no-augment", dest="augment", action="store_false", help="distort each training image the same way every time"
    )
    add("--evaluate-every", type=int, default=100, help="iterations (default: %(default)s)")
    add(
        "--processes",
        type=int,
        default=max((os.cpu_count() or 2) // 2, 1),
        help="how many cells train at a time, with one thread each (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the study, needed to train: its tables, and in cells/ a file for each finished cell that is "
        "not in them yet (default of --report, --summary and --repeat: docs/evidence)",
    )
    add(
        "--trials-from",
        type=Path,
        metavar="DIR",
        help="folder of another study: its trials choose, and its times are shown; with --backbone they are of the "
        "whole backbone. Its embeddings may have another size (default: that of --out)",
    )
    add("--metric", choices=METRICS, default=METRICS[0], help="of --summary runs (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--report", action="store_true", help="only print the tables of what is there")
    instead.add_argument(
        "--summary",
        nargs="?",
        const="runs",
        choices=("runs", "screened"),
        help="only print one table of all kept runs, or of all screened seeds: a column for each loss. It needs no "
        "images, and takes all losses, contenders and seeds that are there (default: %(const)s)",
    )
    instead.add_argument("--add", action="store_true", help="only move finished cells into the tables of the study")
    instead.add_argument("--time", action="store_true", help="only time the iterations of what is tuned")
    instead.add_argument(
        "--repeat",
        nargs=4,
        metavar=("STAGE", "LOSS", "NAME", "NUMBER"),
        help='only train one cell again, and compare: "run n_pairs gca 0", "tune ..." for a trial, or "screen ..."',
    )
    return parser


def draw_parser() -> argparse.ArgumentParser:
    """Return the parser of draw_evidence.py, which passes other arguments on to the one above."""
    parser = argparse.ArgumentParser(
        description="Draw figures from the results of compare_generators.py. For 'hardness' and 'negatives' it trains "
        "seed 0 of three contenders again, unless watched.csv of the study has them, and adds them there. Give the "
        "arguments of compare_generators.py that the results were made with, too.",
    )
    add = parser.add_argument
    add("--loss", default="n_pairs", help="(default: %(default)s)")
    add("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="(default: all)")
    add("--seeds", default="5", metavar="N", help="0 to N - 1 (default: %(default)s)")
    add("--to", type=Path, default=Path("docs"), metavar="DIR", help="folder for the pictures (default: %(default)s)")
    return parser

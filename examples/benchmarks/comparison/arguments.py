"""Arguments of compare_generators.py."""

import argparse
import os
from pathlib import Path

from comparison.beside_the_loss import LOSSES
from comparison.contenders import ABLATIONS, CONTENDERS
from comparison.inputs import Inputs
from comparison.pictures import PICTURES
from comparison.registry import ALL, WITH_BACKBONE, WITH_SMALL_NETWORK
from comparison.study import Study
from pml_gca.utils.command_line import check_minimums

COUNTS = ("trials", "trial_iterations", "seeds", "iterations", "embedding_size", "evaluate_every", "processes")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments; `out` and `trials_from` are studies."""
    parser = argparse.ArgumentParser(
        description="Train a small network on characters in 16 fonts, or a pretrained backbone on a folder of images, "
        "with each generator and loss. First, the same "
        "number of short trials for each (fewer where there are fewer choices) chooses hyperparameters on validation "
        "classes. Then the chosen ones are trained from scratch with several seeds, and tested once. You can stop at "
        "any time: the same command continues, and does no finished cell again.",
    )
    add = parser.add_argument
    add("--losses", nargs="+", choices=LOSSES, default=["n_pairs", "multi_similarity", "proxy_anchor"])
    add(
        "--generators",
        nargs="+",
        choices=ALL,
        metavar="NAME",
        help=f"{', '.join(ALL)} (default: those before {next(iter(ABLATIONS))}, with "
        f"--backbone {', '.join(PICTURES)}; with --report, all)",
    )
    add("--data", type=Path, metavar="DIR", help="folder of class folders of images (default: characters in 16 fonts)")
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
        type=Study,
        default="docs/evidence",
        metavar="DIR",
        help="folder of the study: its tables, and in cells/ a file for each finished cell that is not in them yet "
        "(default: %(default)s)",
    )
    add(
        "--trials-from",
        type=Study,
        metavar="DIR",
        help="folder of another study: its trials choose, and its times are shown; with --backbone they are of the "
        "whole backbone (default: that of --out)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--report", action="store_true", help="only print the tables of what is there")
    instead.add_argument("--add", action="store_true", help="only move finished cells into the tables of the study")
    instead.add_argument("--time", action="store_true", help="only time the iterations of what is tuned")
    instead.add_argument(
        "--repeat",
        nargs=4,
        metavar=("STAGE", "LOSS", "NAME", "NUMBER"),
        help='only train one cell again, and compare: "run n_pairs gca 0", "tune ..." for a trial, or "screen ..."',
    )
    args = parser.parse_args(argv)
    if (args.data is None) != (args.backbone is None) or (args.weights and args.backbone is None):
        parser.error("--data needs --backbone and the other way round; --weights needs both")
    if args.freeze_through and args.backbone is None:
        parser.error("--freeze-through needs --backbone")
    args.inputs = Inputs(args.data, args.weights, args.device, args.out.folder / "cells" / "frozen")
    everyone, usual = (WITH_BACKBONE, PICTURES) if args.backbone else (WITH_SMALL_NETWORK, CONTENDERS)
    args.generators = args.generators or list(everyone if args.report else usual)
    if args.trials_from and args.time:
        parser.error("--time needs the trials of --out: leave out --trials-from")
    args.trials_from = args.trials_from or args.out
    if args.screen is not None:
        check_minimums(parser, args, screen=1)
    check_minimums(parser, args, **dict.fromkeys(COUNTS, 1), image_size=16)  # the network halves images four times
    if args.embedding_size % 2:
        parser.error(f"--embedding-size must be divisible by the 2 heads of the graph, got {args.embedding_size}")
    if args.repeat:
        stage, loss, name, number = args.repeat
        if not number.isdecimal():
            parser.error(f"--repeat needs a number (a seed, or that of a trial) last, got {number}")
        args.repeat = (stage, loss, name, int(number))
    return args

"""Options that several scripts share."""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_minimums(parser: argparse.ArgumentParser, args: argparse.Namespace, **minimums: int) -> None:
    """Exit with a message if a number on the command line is too small.

    Args:
        parser: prints the message.
        args: as parsed. An option that takes several numbers is checked number by number; None passes.
        minimums: smallest allowed number of each option, by its name in `args`.
    """
    for name, minimum in minimums.items():
        given = getattr(args, name)
        for number in given if isinstance(given, list) else [given]:
            if number is not None and number < minimum:
                parser.error(f"--{name.replace('_', '-')} must be at least {minimum}, got {number}")


def check_rates(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """Exit with a message if one of these learning rates, named as in `args`, is no finite number of at least 0."""
    for name in names:
        if not 0 <= getattr(args, name) < math.inf:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be a finite number of at least 0, got {getattr(args, name)}")


def add_folder_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--out`, `--resume` and `--overwrite`, the options of `claim_folder`.

    Args:
        parser: gets them.
        default: describes the folder that is used without `--out`.
    """
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for results (default: {default})")
    what = "continue the runs in --out; the result is the same. With a larger --epochs, finished runs go on, too"
    parser.add_argument("--resume", action="store_true", help=what)
    parser.add_argument("--overwrite", action="store_true", help="delete the runs in --out and start again")


def check_classes_per_batch(parser: argparse.ArgumentParser, count: int) -> None:
    """Exit with a message if a batch has too few classes to hold a negative."""
    if count < 2:
        parser.error(f"--classes-per-batch must be at least 2, or no batch has negatives, got {count}")


def add_unreadable_option(parser: argparse.ArgumentParser) -> None:
    """Add `--unreadable`: what to do with images that cannot be read."""
    parser.add_argument(
        "--unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="if images cannot be read, or a class folder holds none: stop, or name them all and leave them out "
        "(default: %(default)s)",
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add `--unreadable`, `--workers` and `--device`: how images are read, and where they are processed."""
    add_unreadable_option(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that load images (default: one for each CPU core, at most 8; here %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


@contextmanager
def told_when_stopped(what_next: str) -> Iterator[None]:
    """Exit with one line, not with a traceback, when the user presses Ctrl-C.

    Args:
        what_next: what is kept, and how to go on; ends the line.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped; {what_next}", file=sys.stderr)
        sys.exit(130)  # the code that shells give to a command stopped so

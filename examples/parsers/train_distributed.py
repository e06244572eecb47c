"""Arguments of train_distributed.py."""

import argparse
from pathlib import Path

from pml_gca.names import GENERATORS, LOSSES
from pml_gca.utils import command_line

from .train_with_classifier import add_training_options, check_training_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description="Train a small network with generated hard negatives in several processes, which share each batch: "
        "torchrun --nproc-per-node 2 examples/train_distributed.py. They take a GPU each, if there are GPUs. Without "
        "torchrun it is one process.",
    )
    add = parser.add_argument
    what = f"metric loss of PML: {', '.join(LOSSES)} (default: %(default)s)"
    add("--loss", choices=LOSSES, metavar="NAME", default="n_pairs", help=what)
    kinds = "; ".join(f"{name}: {title}" for name, title in GENERATORS.items())
    add("--generator", choices=GENERATORS, metavar="NAME", default="gca", help=f"{kinds} (default: %(default)s)")
    what = "share the edges of the generator's graph among the processes; else each computes all of them"
    add("--shard-edges", action="store_true", help=what)
    add_training_options(parser)
    command_line.add_folder_options(parser, "runs/distributed-LOSS-seedN")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments, with the default of `out` filled in."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_training_options(parser, args)
    args.out = args.out or Path("runs") / f"distributed-{args.loss}-seed{args.seed}"
    return args

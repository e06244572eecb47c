"""Arguments of train_with_classifier.py."""

import argparse
from pathlib import Path

from pml_gca.names import GENERATORS, LOSS_ALONE, LOSSES
from pml_gca.utils import command_line

KINDS = {LOSS_ALONE: "the loss alone", **GENERATORS}
SEVERAL = {"both": (LOSS_ALONE, "gca"), "all": (LOSS_ALONE, "gca", "hardest")}
SAMPLES_PER_CLASS = 3
NUM_HEADS = 2  # of the generator's attention


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description="Train a small network with PML's TrainWithClassifier several times from one seed: with the metric "
        "loss alone, and with generated hard negatives. Print a table over classes that no network has seen, and draw "
        "learning curves and examples of retrieved images.",
    )
    add = parser.add_argument
    what = f"metric loss of PML: {', '.join(LOSSES)} (default: %(default)s)"
    add("--loss", choices=LOSSES, metavar="NAME", default="n_pairs", help=what)
    kinds = "; ".join(f"{name}: {title}" for name, title in KINDS.items())
    several = "; ".join(f"{name}: {', '.join(members)}" for name, members in SEVERAL.items())
    what = f"{kinds}; {several} (default: %(default)s)"
    add("--generator", choices=(*KINDS, *SEVERAL), metavar="NAME", default="both", help=what)
    add_training_options(parser)
    command_line.add_folder_options(parser, "runs/LOSS-seedN")
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of images, network and steps."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of class folders of images (default: characters in 16 fonts)")
    command_line.add_unreadable_option(parser)
    for name, default, what in (
        ("epochs", 8, "epochs, each followed by a validation"),
        ("iterations", 100, "training iterations in each epoch"),
        ("seed", 0, "seed of weights, batches and distortions"),
        ("classes-per-batch", 27, f"classes in a batch, with {SAMPLES_PER_CLASS} images each"),
        ("image-size", 32, "side of the images, in pixels"),
        ("embedding-size", 128, "channels of an embedding"),
        ("layers", 1, "propagation layers of GCA-HNG"),
        ("lr", 1e-3, "learning rate of the network and its classifier"),
        ("generator-lr", 1e-3, "learning rate of the generator, and of proxies if the loss has any"),
    ):
        add(f"--{name}", type=type(default), default=default, metavar="N", help=f"{what} (default: %(default)s)")


def check_training_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a message if one of these options cannot be used."""
    at_least_1 = dict.fromkeys(("epochs", "iterations", "embedding_size", "layers"), 1)
    command_line.check_minimums(parser, args, **at_least_1, image_size=16)
    command_line.check_classes_per_batch(parser, args.classes_per_batch)
    if args.embedding_size % NUM_HEADS:
        parser.error(f"--embedding-size must be divisible by {NUM_HEADS}, got {args.embedding_size}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments, with the default of `out` filled in."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_training_options(parser, args)
    args.out = args.out or Path("runs") / f"{args.loss}-seed{args.seed}"
    return args

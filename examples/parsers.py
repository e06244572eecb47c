"""Command lines of the examples. They load no torch: `--help` is shown at once."""

import argparse
from pathlib import Path

from pml_gca.names import GENERATORS, LOSS_ALONE, LOSSES, RECIPES
from pml_gca.utils.command_line import (
    add_folder_options,
    add_image_options,
    add_unreadable_option,
    check_classes_per_batch,
    check_minimums,
    check_rates,
)

KINDS = {LOSS_ALONE: "the loss alone", **GENERATORS}
SEVERAL = {"both": (LOSS_ALONE, "gca"), "all": (LOSS_ALONE, "gca", "hardest")}
SAMPLES_PER_CLASS = 3
NUM_HEADS = 2  # of the generator's attention


def classifier_parser() -> argparse.ArgumentParser:
    """Return the parser of train_with_classifier.py."""
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
    add_folder_options(parser, "runs/LOSS-seedN")
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of images, network and steps."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of class folders of images (default: characters in 16 fonts)")
    add_unreadable_option(parser)
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
    check_minimums(parser, args, **at_least_1, image_size=16)
    check_classes_per_batch(parser, args.classes_per_batch)
    check_rates(parser, args, "lr", "generator_lr")
    if args.embedding_size % NUM_HEADS:
        parser.error(f"--embedding-size must be divisible by {NUM_HEADS}, got {args.embedding_size}")


def classifier_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments of train_with_classifier.py, with the default of `out` filled in."""
    parser = classifier_parser()
    args = parser.parse_args(argv)
    check_training_options(parser, args)
    args.out = args.out or Path("runs") / f"{args.loss}-seed{args.seed}"
    return args


def distributed_parser() -> argparse.ArgumentParser:
    """Return the parser of train_distributed.py."""
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
    add_folder_options(parser, "runs/distributed-LOSS-seedN")
    return parser


def distributed_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments of train_distributed.py, with the default of `out` filled in."""
    parser = distributed_parser()
    args = parser.parse_args(argv)
    check_training_options(parser, args)
    args.out = args.out or Path("runs") / f"distributed-{args.loss}-seed{args.seed}"
    return args


def reproduce_parser() -> argparse.ArgumentParser:
    """Return the parser of reproduce.py."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate like the paper, with PML's trainer and tester. Print a table over seeds, with "
        "the paper's numbers where they are known. A run that was stopped continues with --resume.",
        epilog="Example: reproduce.py --recipe resnet50_cub --data-root data/cub --loss proxy_anchor --seeds 5 --amp",
    )
    what = parser.add_argument_group("experiment")
    what.add_argument("--recipe", required=True, metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    what.add_argument("--data-root", required=True, type=Path, metavar="DIR", help="folder of the data set")
    what.add_argument(
        "--loss",
        default="n_pairs",
        metavar="NAME",
        help=f"one of {', '.join(LOSSES)}; or your own as module:function, called with num_classes and "
        "embedding_size (default: %(default)s)",
    )
    what.add_argument(
        "--generator",
        choices=(*GENERATORS, LOSS_ALONE),
        metavar="NAME",
        default="gca",
        help=f"{'; '.join(f'{name}: {title}' for name, title in GENERATORS.items())}; {LOSS_ALONE}: the loss alone "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--backbone",
        metavar="NAME",
        help="model of timm, such as convnext_tiny.fb_in22k, instead of the recipe's backbone; images are prepared as "
        "it was trained to take them",
    )
    what.add_argument("--epochs", type=int, metavar="N", help="epochs instead of the recipe's")
    what.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="change the recipe: dataset=folder (your own folder "
        "of class folders), alpha=3, ..., or any other option of GlobalCorrelationGenerator: merging=hardest, ...",
    )
    how = parser.add_argument_group("training and evaluation")
    how.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="number of runs, with seeds 0 to N - 1 (default: 1)"
    )
    how.add_argument("--first-seed", type=int, default=0, metavar="S", help="seed of the first run (default: 0)")
    how.add_argument(
        "--schedule",
        choices=("alternating", "one_backward"),
        default="alternating",
        help="alternating: as published; one_backward: one backward pass for everything, which is faster "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--sampler",
        choices=("covering", "random"),
        default="covering",
        help="covering: each image of a class is used once before any is repeated, as published; random: PML's sampler "
        "(default: %(default)s)",
    )
    how.add_argument(
        "--select-on",
        choices=("val", "test", "last"),
        default="val",
        help="epoch to report. val: the best one on held-out training classes; test: the best one on the test "
        "classes, as in the published code; last: the last one (default: %(default)s)",
    )
    how.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the training classes to hold out (default: 0.1 with --select-on val, otherwise 0)",
    )
    how.add_argument(
        "--evaluate-every", type=int, default=1, metavar="N", help="epochs between evaluations (default: %(default)s)"
    )
    how.add_argument(
        "--eval-batch-size", type=int, default=128, metavar="N", help="images per batch (default: %(default)s)"
    )
    how.add_argument("--amp", action="store_true", help="train with bfloat16 autocast")
    how.add_argument("--random-weights", action="store_true", help="start from random weights instead of ImageNet's")
    how.add_argument(
        "--image-size",
        type=int,
        metavar="S",
        help="side of the crops, in pixels (default: 224; with another backbone, its own)",
    )
    how.add_argument(
        "--small-classes",
        choices=("repeat", "stop"),
        default="repeat",
        help="if a class has fewer images than a batch takes of it: repeat them, or stop (default: %(default)s)",
    )
    how.add_argument("--download", action="store_true", help="download the data set first, if PML can")
    add_image_options(parser)
    add_folder_options(parser, "runs/RECIPE-LOSS-GENERATOR")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run one batch of everything, and print the hours and memory of the whole experiment; write nothing",
    )
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Return the parser of evaluate_checkpoint.py."""
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

"""Arguments of reproduce.py."""

import argparse
from pathlib import Path

from pml_gca.names import GENERATORS, LOSS_ALONE, LOSSES, RECIPES
from pml_gca.utils.command_line import add_folder_options, add_image_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
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

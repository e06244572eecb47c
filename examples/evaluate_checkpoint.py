"""Evaluate one of the authors' published checkpoints on the test classes of its data set."""

import argparse
import sys

from parsers import evaluate_parser

if __name__ == "__main__":
    evaluate_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

from pml_gca.datasets import load_benchmark
from pml_gca.paper import Options, evaluate, find_recipe, load_published_checkpoint
from pml_gca.paper.report import percent
from pml_gca.utils.command_line import check_minimums, told_when_stopped
from pml_gca.utils.files import write_json
from pml_gca.utils.tables import metrics_table


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what argparse cannot, and replace the names of recipe and device by the objects."""
    check_minimums(parser, args, batch_size=1, workers=0, image_size=32)
    if args.image_size > 1024:
        parser.error(f"--image-size must be at most 1024, got {args.image_size}")
    try:
        args.device = Options(device=None if args.device == "auto" else args.device).torch_device
    except ValueError as error:
        parser.error(f"--device: {error}")
    try:
        args.recipe = find_recipe(args.recipe)
    except ValueError as error:
        parser.error(f"--recipe: {error}")
    if not args.checkpoint.is_file():
        parser.error(f"--checkpoint: there is no file {args.checkpoint}")
    if args.out is not None and (args.out.is_dir() or not args.out.parent.is_dir()):
        parser.error(f"--out must name a file in a folder that exists, got {args.out}")


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Load the data set and the checkpoint, evaluate, print the table and write the results."""
    recipe = args.recipe
    try:
        benchmark = load_benchmark(
            recipe.dataset,
            args.data_root,
            image_size=args.image_size,
            val_fraction=0.0,
            unreadable=args.unreadable,
            check_train=False,
        )
    except (OSError, TypeError, ValueError) as error:
        parser.error(f"--data-root: {error}")
    try:
        trunk, embedder, _ = load_published_checkpoint(args.checkpoint, recipe, image_size=args.image_size)
    except (OSError, TypeError, ValueError) as error:
        parser.error(f"--checkpoint {args.checkpoint}: {error}")
    metrics = evaluate(
        trunk,
        embedder,
        benchmark,
        "test",
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )
    parts = {name: len(dataset) for name, dataset in benchmark.test.items()}
    row = {args.checkpoint.name: {name: percent([value]) for name, value in metrics.items()}}
    sizes = ", ".join(f"{count} images to {name}" for name, count in parts.items())
    skipped = f"; {len(benchmark.left_out)} that cannot be read are left out" if benchmark.left_out else ""
    print(f"{recipe.name}, unseen classes ({sizes}{skipped}), in percent\n\n{metrics_table(row, list(metrics))}")
    if args.out is not None:
        about = {"checkpoint": args.checkpoint.name, "recipe": recipe.name, "image_size": args.image_size}
        write_json(args.out, {**about, "images": parts, "left_out": benchmark.left_out, "metrics": metrics})


def main(argv: list[str] | None = None) -> None:
    parser = evaluate_parser()
    args = parser.parse_args(argv)
    try:
        check_arguments(parser, args)
        run(parser, args)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"evaluate_checkpoint.py: {error}")


if __name__ == "__main__":
    with told_when_stopped("nothing is kept"):
        main()

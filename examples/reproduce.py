"""Run an experiment of the paper: one command with a recipe, a data root, and any loss."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from pml_gca import visualize
from pml_gca.datasets import Benchmark, load_benchmark, small_classes
from pml_gca.losses import NAMED_LOSSES
from pml_gca.paper import (
    RECIPES,
    Experiment,
    Options,
    changed_recipe,
    dry_run,
    find_recipe,
    identity,
    seeds_table,
)
from pml_gca.utils import runs
from pml_gca.utils.command_line import add_folder_options, add_image_options, check_minimums

ONE_OF = ", ".join(RECIPES)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and evaluate like the paper, with PML's trainer and tester. Print a table over seeds, with "
        "the paper's numbers where they are known. A run that was stopped continues with --resume.",
        epilog="Example: reproduce.py --recipe resnet50_cub --data-root data/cub --loss proxy_anchor --seeds 5 --amp",
    )
    what = parser.add_argument_group("experiment")
    what.add_argument("--recipe", required=True, metavar="NAME", help=f"one of {ONE_OF}")
    what.add_argument("--data-root", required=True, type=Path, metavar="DIR", help="folder of the data set")
    what.add_argument(
        "--loss",
        default="n_pairs",
        metavar="NAME",
        help=f"one of {', '.join(NAMED_LOSSES)}; or your own as module:function, called with num_classes and "
        "embedding_size (default: %(default)s)",
    )
    what.add_argument(
        "--generator",
        choices=("gca", "hardest", "none"),
        default="gca",
        help="gca: GCA-HNG; hardest: the hardest real negatives and a linear classifier; none: the loss alone "
        "(default: %(default)s)",
    )
    what.add_argument("--epochs", type=int, metavar="N", help="epochs instead of the recipe's")
    what.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="change the recipe: backbone=mobilenetv3_small_100 (any model of timm), dataset=folder (your own folder "
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
        "--image-size", type=int, default=224, metavar="S", help="side of the crops, in pixels (default: %(default)s)"
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
    args = parser.parse_args(argv)
    check_minimums(parser, args, seeds=1, first_seed=0, workers=0, image_size=16)
    try:
        complete(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return args


def complete(args: argparse.Namespace) -> None:
    """Add recipe and options to `args`, and the defaults that depend on other arguments.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """
    if args.val_fraction is None:
        args.val_fraction = 0.1 if args.select_on == "val" else 0.0
    epochs = [] if args.epochs is None else [f"epochs={args.epochs}"]
    args.recipe = changed_recipe(find_recipe(args.recipe), [*args.set, *epochs])
    args.options = Options(
        loss=find_loss(args.loss),
        generator=args.generator,
        schedule=args.schedule,
        select_on=args.select_on,
        sampler=args.sampler,
        seed=args.first_seed,
        amp=args.amp,
        device=None if args.device == "auto" else args.device,
        workers=args.workers,
        pretrained=not args.random_weights,
        image_size=args.image_size,
        evaluate_every=args.evaluate_every,
        eval_batch_size=args.eval_batch_size,
    )
    title = f"{args.recipe.name}-{args.loss.replace(':', '.')}-{args.generator}"
    args.out = args.out or Path("runs") / title


def find_loss(name: str) -> str | Callable[[int, int], nn.Module]:
    """Return a name of `NAMED_LOSSES` as it is, and the function that `module:function` names.

    Raises:
        ValueError: the function cannot be imported.
    """
    module, colon, function = name.partition(":")
    if not colon:
        return name
    sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[int, int], nn.Module] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--loss {name}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    return found


def load(args: argparse.Namespace) -> Benchmark:
    """Return the data set of the recipe.

    Raises:
        ValueError: a class has too few images, and `--small-classes stop` is given.
    """
    recipe = args.recipe
    benchmark = load_benchmark(
        recipe.dataset,
        args.data_root,
        image_size=args.image_size,
        val_fraction=args.val_fraction,
        unreadable=args.unreadable,
        download=args.download,
    )
    small = small_classes(benchmark.train, recipe.samples_per_class)
    if small:
        message = (
            f"{len(small)} of {benchmark.train.num_classes} training classes have fewer than the "
            f"{recipe.samples_per_class} images that a batch takes of each class: "
            f"{', '.join(f'{name} has {count}' for name, count in small[:5])}{', ...' if len(small) > 5 else ''}"
        )
        if args.small_classes == "stop":
            raise ValueError(message)
        print(f"{message}; their images are repeated", file=sys.stderr)
    return benchmark


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        benchmark = load(args)
        if args.dry_run:
            print(f"{args.recipe.name}: {describe(benchmark)}")
            print(dry_run(args.recipe, benchmark, args.options))
            return
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        names = [f"seed{seed}" for seed in seeds]
        settings = identity(args.recipe, benchmark, args.options)
        runs.claim_folder(args.out, settings, resume=args.resume, overwrite=args.overwrite, runs=("seed*",))
        print(f"{args.recipe.name}: {describe(benchmark)}; results in {args.out}")
        results = {
            seed: Experiment(args.recipe, benchmark, replace(args.options, seed=seed), args.out / name).train()
            for seed, name in zip(seeds, names, strict=True)
        }
    except (TypeError, ValueError, ImportError, OSError) as error:
        sys.exit(f"reproduce.py: {error}")
    report = seeds_table(results, args.recipe, args.options, benchmark)
    print(f"\n{report}")
    (args.out / "table.md").write_text(report)
    curves = [result["history"] for result in results.values() if result["history"]["recall_at_1"]]
    if curves:
        title = f"{args.recipe.name}, {'held-out' if args.select_on == 'val' else 'test'} classes"
        shown = {args.options.title: curves}
        if visualize.try_to_save(args.out / "curves.png", lambda: visualize.plot_curves(shown, title=title)):
            print(f"Learning curves: {args.out / 'curves.png'}")


def describe(benchmark: Benchmark) -> str:
    """Say how many images and classes each split has."""
    uses = {"test": "for testing", "query": "as queries", "gallery": "as gallery"}
    parts = {"for training": benchmark.train, "for validation": benchmark.val}
    parts |= {uses[name]: part for name, part in benchmark.test.items()}
    return ", ".join(f"{len(p)} images of {p.num_classes} classes {use}" for use, p in parts.items() if p is not None)


if __name__ == "__main__":
    main()

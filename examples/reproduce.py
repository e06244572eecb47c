"""Run an experiment of the paper: one command with a recipe, a data root, and any loss."""

import argparse
import sys

from parsers import reproduce_parser

if __name__ == "__main__":
    reproduce_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from pml_gca import visualize
from pml_gca.datasets import Benchmark, load_benchmark, small_classes
from pml_gca.paper import (
    Experiment,
    Options,
    changed_recipe,
    dry_run,
    experiment_title,
    find_recipe,
    identity,
    input_config,
    seeds_table,
    unused_settings,
)
from pml_gca.utils import runs
from pml_gca.utils.command_line import check_minimums, told_when_stopped
from pml_gca.utils.files import write_text
from pml_gca.utils.validation import count_of, first_of


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments, completed by `complete`."""
    parser = reproduce_parser()
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
    given = [f"{name}={value}" for name in ("backbone", "epochs") if (value := getattr(args, name)) is not None]
    args.recipe = changed_recipe(find_recipe(args.recipe), [*args.set, *given])
    args.input_config = input_config(args.recipe.backbone)
    if args.image_size is None:
        args.image_size = args.input_config.image_size
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
    unused = sorted({change.partition("=")[0] for change in args.set} & unused_settings(args.generator))
    if unused:
        print(f"--set {', '.join(unused)}: not used with --generator {args.generator}", file=sys.stderr)
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
        input_config=args.input_config,
        val_fraction=args.val_fraction,
        unreadable=args.unreadable,
        download=args.download,
    )
    for note in benchmark.notes:
        print(note, file=sys.stderr)
    small = small_classes(benchmark.train, recipe.samples_per_class)
    if small:
        message = (
            f"{len(small)} of {benchmark.train.num_classes} training classes have fewer than the "
            f"{recipe.samples_per_class} images that a batch takes of each class: "
            + first_of([f"{name} has {count}" for name, count in small])
        )
        if args.small_classes == "stop":
            raise ValueError(message)
        print(f"{message}; their images are repeated", file=sys.stderr)
    return benchmark


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        benchmark = load(args)
        title = experiment_title(args.recipe, benchmark)
        if args.dry_run:
            print(f"{title}: {describe(benchmark)}")
            print(dry_run(args.recipe, benchmark, args.options))
            return
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        names = [f"seed{seed}" for seed in seeds]
        settings = identity(args.recipe, benchmark, args.options)
        runs.claim_folder(args.out, settings, resume=args.resume, overwrite=args.overwrite, runs=("seed*",))
        print(f"{title}: {describe(benchmark)}; results in {args.out}")
        results = {
            seed: Experiment(args.recipe, benchmark, replace(args.options, seed=seed), args.out / name).train()
            for seed, name in zip(seeds, names, strict=True)
        }
    except (TypeError, ValueError, ImportError, OSError) as error:
        sys.exit(f"reproduce.py: {error}")
    report = seeds_table(results, args.recipe, args.options, benchmark)
    print(f"\n{report}")
    try:
        write_text(args.out / "table.md", report)
    except OSError as error:
        sys.exit(f"reproduce.py: {error}")
    curves = [result["history"] for result in results.values() if result["history"]["recall_at_1"]]
    if curves:
        title = f"{title}, {'held-out' if args.select_on == 'val' else 'test'} classes"
        shown = {args.options.title: curves}
        if visualize.try_to_save(args.out / "curves.png", lambda: visualize.plot_curves(shown, title=title)):
            print(f"Learning curves: {args.out / 'curves.png'}")


def describe(benchmark: Benchmark) -> str:
    """Say how many images and classes each split has."""
    uses = {"test": "for testing", "query": "as queries", "gallery": "as gallery"}
    parts = {"for training": benchmark.train, "for validation": benchmark.val}
    parts |= {uses[name]: part for name, part in benchmark.test.items()}
    sizes = {use: (len(part), part.num_classes) for use, part in parts.items() if part is not None}
    return ", ".join(
        f"{count_of(images, 'image')} of {count_of(classes, 'class', 'classes')} {use}"
        for use, (images, classes) in sizes.items()
    )


if __name__ == "__main__":
    with told_when_stopped("finished epochs are kept: the same command with --resume goes on"):
        main()

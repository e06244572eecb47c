"""The paper's experiments, one command each: a recipe, a data root, and any loss."""

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
from pml_gca.paper import Experiment, Options, changed_recipe, dry_run, identity
from pml_gca.paper.recipes import RECIPES, find_recipe
from pml_gca.paper.report import seeds_table, title_of
from pml_gca.utils import runs

ONE_OF = ", ".join(RECIPES)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and evaluate as the paper does, by PML's trainer and tester, and print a table over seeds "
        "beside the paper's figures where they are known. A run that is killed goes on with --resume.",
        epilog="Example: reproduce.py --recipe resnet50_cub --data-root data/cub --loss proxy_anchor --seeds 5 --amp",
    )
    add = parser.add_argument
    what = parser.add_argument_group("what")
    what.add_argument("--recipe", required=True, metavar="NAME", help=f"one of {ONE_OF}")
    what.add_argument("--data-root", required=True, type=Path, metavar="DIR", help="where the data set lies")
    what.add_argument(
        "--loss",
        default="n_pairs",
        metavar="NAME",
        help=f"one of {', '.join(NAMED_LOSSES)}, or your own as module:function, which is given num_classes and "
        "embedding_size (default: %(default)s)",
    )
    what.add_argument(
        "--generator", choices=("gca", "none"), default="gca", help="none: the loss alone (default: %(default)s)"
    )
    what.add_argument("--epochs", type=int, help="other than the recipe's")
    what.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="change the recipe: backbone=mobilenetv3_small_100 (any model of timm), dataset=folder (your own folder "
        "of class folders), alpha=3, ..., or any other option of GlobalCorrelationGenerator: coefficients=1.0, "
        "merging=hardest, ...",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--seeds", type=int, default=1, metavar="N", help="runs, of seeds 0 to N - 1 (default: 1)")
    how.add_argument("--first-seed", type=int, default=0, metavar="S", help="count seeds from here (default: 0)")
    how.add_argument(
        "--schedule",
        choices=("alternating", "one_backward"),
        default="alternating",
        help="as published, or everything in one backward pass, which is faster (default: %(default)s)",
    )
    how.add_argument(
        "--sampler",
        choices=("covering", "random"),
        default="covering",
        help="batches take every image of a class once before any again, as published, or draw them anew, as PML's "
        "sampler does (default: %(default)s)",
    )
    how.add_argument(
        "--select-on",
        choices=("val", "test", "last"),
        default="val",
        help="report the epoch that is best on held-out training classes; on the test classes, as the published code "
        "does; or the last (default: %(default)s)",
    )
    how.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the training classes held out (default: 0.1 with --select-on val, else none)",
    )
    how.add_argument("--evaluate-every", type=int, default=1, metavar="N", help="epochs (default: %(default)s)")
    how.add_argument("--eval-batch-size", type=int, default=128, metavar="N", help="images (default: %(default)s)")
    how.add_argument("--amp", action="store_true", help="bfloat16 autocast in training")
    how.add_argument("--random-weights", action="store_true", help="do not start from ImageNet's weights")
    how.add_argument("--image-size", type=int, default=224, metavar="S", help="side of a crop (default: %(default)s)")
    how.add_argument(
        "--small-classes",
        choices=("repeat", "stop"),
        default="repeat",
        help="where a class has fewer images than a batch takes of it (default: %(default)s them)",
    )
    how.add_argument(
        "--unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="images that cannot be read: stop at the first, or look for them all beforehand and leave them out "
        "(default: %(default)s)",
    )
    how.add_argument("--download", action="store_true", help="get the data set first, if PML can")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    machine.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that load images (default: a CPU core each, up to 8; here %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="folder for results (default: runs/RECIPE-LOSS-GENERATOR)")
    add("--resume", action="store_true", help="go on with the runs found in --out, to the same end")
    add("--overwrite", action="store_true", help="delete the runs found in --out")
    add(
        "--dry-run",
        action="store_true",
        help="one batch of everything, and the hours and memory that the whole will take; writes nothing",
    )
    args = parser.parse_args(argv)
    try:
        complete(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return args


def complete(args: argparse.Namespace) -> None:
    """Check what argparse cannot, and fill in defaults that depend on other arguments."""
    for name, least in (("seeds", 1), ("first_seed", 0), ("workers", 0), ("image_size", 16)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
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
    """A loss's name as it is, or the function that ``module:function`` names."""
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
    """The data set of the recipe."""
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
            f"{recipe.samples_per_class} images that a batch takes of each: "
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
        shown = {title_of(args.options): curves}
        if visualize.try_to_save(args.out / "curves.png", lambda: visualize.plot_curves(shown, title=title)):
            print(f"Learning curves: {args.out / 'curves.png'}")


def describe(benchmark: Benchmark) -> str:
    """Images and classes of each part."""
    uses = {"test": "to test on", "query": "to query with", "gallery": "to search in"}
    parts = {"to train on": benchmark.train, "to validate on": benchmark.val}
    parts |= {uses[name]: part for name, part in benchmark.test.items()}
    return ", ".join(f"{len(p)} images of {p.num_classes} classes {use}" for use, p in parts.items() if p is not None)


if __name__ == "__main__":
    main()

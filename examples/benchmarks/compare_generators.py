"""Compare generators of hard negatives: equal networks, data and iterations, equally many trials, several seeds."""

import argparse
import sys

from comparison.parsers import compare_parser

if __name__ == "__main__":
    compare_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

from dataclasses import replace

from comparison.arguments import parse_arguments
from comparison.forecast import forecast
from comparison.plan import best_options, one_of_each, seeds, trained_with, trials
from comparison.report import report, screen_report
from comparison.running import train_here, train_missing
from comparison.study import Study
from comparison.summary import STAGES, summary
from comparison.table import name_of
from comparison.timing import ROUNDS, time_iterations
from comparison.training import one_thread
from tqdm import tqdm

from pml_gca.utils import runs
from pml_gca.utils.command_line import told_when_stopped

SOURCE = ("data", "backbone", "weights", "frozen_through", "views")
AS_AVX2 = ("ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2", "MKL_ENABLE_INSTRUCTIONS=AVX2")


def time_all(args: argparse.Namespace) -> None:
    """Time the contenders of each loss in turns, with one thread, as they are trained.

    Raises:
        ValueError: nothing is tuned for a loss.
    """
    for loss in args.losses:
        cells = one_of_each(args, loss)
        if not cells:
            raise ValueError(f"nothing is tuned for {loss} in {args.out} yet, so there is nothing to time")
        with one_thread(), tqdm(total=ROUNDS * len(cells), desc=f"timing: {loss}", unit="turn") as bar:
            time_iterations(cells, args.out, ROUNDS, tick=bar.update)


def train_all(args: argparse.Namespace) -> None:
    """Train the trials that are missing, then the runs.

    Raises:
        ValueError: trials of another study are missing, kept cells have other settings, or a loss cannot be trained
            with a contender.
    """
    pairs = [(loss, name) for loss in args.losses for name in trained_with(args, loss)]
    if args.trials_from is args.out:
        cells = {cell.key: cell for pair in pairs for cell in trials(args, *pair)}
        train_missing(cells.values(), args.out, args.processes, "tuning")
        args.out.reread()
    runs, stage = [], "screen" if args.screen else "run"
    for loss, name in pairs:
        best = best_options(args, loss, name)
        if best is None:
            raise ValueError(f"{args.trials_from} has not all trials of {loss}, {name}; tune there first")
        runs += seeds(args, loss, name, best[0], stage)
    # Seed by seed: the finished runs can be compared at any time.
    train_missing(sorted(runs, key=lambda cell: cell.number), args.out, args.processes, f"{stage}s")
    args.out.reread()


def tables(args: argparse.Namespace) -> str:
    """Return the report.

    Raises:
        ValueError: there are runs, but no trials that choose among them.
    """
    if args.screen:
        return screen_report(args) or f"no screened seeds in {args.out} yet"
    found = report(args)
    if not found and args.out.has_runs():
        raise ValueError(f"there are runs in {args.out}, and no trials in {args.trials_from}; give --trials-from")
    return found or f"nothing in {args.out} yet"


def repeat(args: argparse.Namespace, stage: str, loss: str, name: str, number: int) -> None:
    """Train a cell again, and print both results.

    Raises:
        SystemExit: they differ.
        ValueError: the study has no such cell, or it was trained on other data.
    """
    study: Study = args.out
    cell, made_by, before = study.load(stage, loss, name, number)
    kept, given = (
        {name: settings.get(name) for name in SOURCE}
        for settings in (cell.settings, args.inputs.settings(args.backbone, args.freeze_through))
    )
    if changed := runs.differences(kept, given):
        raise ValueError(f"{name_of(cell.key)} was trained on other data ({changed}); give its --data and --backbone")
    cell = replace(cell, inputs=args.inputs)
    after = train_here(cell, "again")
    scores = {"val_recall_at_1": (before["val_recall_at_1"], after["val_recall_at_1"])}
    scores |= {metric: (value, after["metrics"][metric]) for metric, value in before.get("metrics", {}).items()}
    for metric, (old, new) in scores.items():
        print(f"{metric:<28} {100 * old:.4f}% {100 * new:.4f}% {'same' if old == new else 'DIFFERENT'}")
    if any(old != new for old, new in scores.values()):
        sys.exit(
            f"{name_of(cell.key)} differs from {study}, where it was made by {made_by}. Other processors and versions "
            f"round differently (x86 with more than AVX2 rounds as AVX2 does with {' '.join(AS_AVX2)})"
        )


def main(argv: list[str] | None = None) -> None:
    """Do what the arguments say."""
    args = parse_arguments(argv)
    try:
        if args.repeat:
            return repeat(args, *args.repeat)
        if args.summary:
            metric = args.metric if args.summary == "runs" else "val_recall_at_1"
            return print(summary(args.out, STAGES[args.summary], metric) or f"nothing in {args.out} yet")
        if args.only_forecast:
            return print(forecast(args))
        if args.add:
            return print(f"{args.out.add()} cells added to the tables in {args.out}")
        if args.time:
            time_all(args)
        elif not args.report:
            train_all(args)
        print(tables(args))
    except (OSError, ValueError) as error:
        sys.exit(f"compare_generators.py: {error}")


if __name__ == "__main__":
    with told_when_stopped("finished cells are kept: the same command trains the others"):
        main()

"""What a command would train, and about how long that takes."""

import argparse
import statistics
from collections import defaultdict

from comparison.arguments import KEPT
from comparison.cells import Cell
from comparison.plan import trained_with, trials
from comparison.registry import ALL, TITLES, WITH_BACKBONE, WITH_SMALL_NETWORK
from comparison.study import Study
from pml_gca.utils.quantities import duration
from pml_gca.utils.tables import markdown_table
from pml_gca.utils.validation import count_of


def forecast(args: argparse.Namespace) -> str:
    """Return a list of all contenders, the numbers of trials and runs of each loss, and how to start.

    Raises:
        ValueError: a loss cannot be trained with a contender.
    """
    everyone = WITH_SMALL_NETWORK if args.backbone is None else WITH_BACKBONE
    rows = [["x" if name in args.generators else "", name, TITLES[name]] for name in everyone]
    lines = [f"{markdown_table(['', '--generators', 'row'], rows, left=3, padded=True)}\n\nMarked with x: these."]
    for loss in args.losses:
        names = trained_with(args, loss)
        tuned = names if args.trials_from is args.out else []
        cells = {cell.key: cell for name in tuned for cell in trials(args, loss, name)}
        lengths = [args.iterations * ALL[name].length for name in names for _ in range(number_of_seeds(args))]
        total = sum(cell.settings["iterations"] for cell in cells.values()) + sum(lengths)
        told = (
            f"{loss}: {count_of(len(cells), 'trial')} and {count_of(len(lengths), 'run')}, {total:,} iterations in all"
        )
        left_out = ", ".join(name for name in args.generators if name not in names)
        told += f", without {left_out}, which {loss} cannot train" if left_out else ""
        lines.append(f"{told}; {time_of(args, loss, names, list(cells.values()))}")
    start = "Nothing is trained without --out. Add --out runs/mine to train this"
    return "\n".join([*lines, f"{start}; --report prints the tables of the results that are kept in {KEPT}."])


def number_of_seeds(args: argparse.Namespace) -> int:
    """Return how many seeds of each contender are trained."""
    return int(args.seeds if args.screen is None else args.screen)


def time_of(args: argparse.Namespace, loss: str, names: list[str], cells: list[Cell]) -> str:
    """Say how long the trials and runs of a loss take if iterations take as long as those that are kept.

    Args:
        args: arguments.
        loss: name.
        names: of the contenders to train with it.
        cells: its trials.
    """
    if args.backbone is not None:
        return "how long that takes depends on the backbone and the device"
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in Study(KEPT).runs.rows.values():
        if row["loss"] == loss:
            seconds[row["contender"]].append(row["seconds"] / row["iterations"])
    if not seconds:
        return "how long that takes is not known: no run of this loss is kept"
    per_iteration = {name: statistics.median(found) for name, found in seconds.items()}
    slowest = max(per_iteration.values())  # for contenders that never ran
    total = sum(cell.settings["iterations"] * per_iteration.get(cell.contender, slowest) for cell in cells)
    for name in names:
        total += number_of_seeds(args) * args.iterations * ALL[name].length * per_iteration.get(name, slowest)
    at_a_time = f"{args.processes} at a time" if args.processes > 1 else "one after the other"
    return f"about {duration(total / args.processes)}, {at_a_time}"

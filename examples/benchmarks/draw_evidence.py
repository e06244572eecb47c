"""Draw the pictures of docs/evidence.md from the results of compare_generators.py."""

import sys

from comparison.parsers import FIGURES as FIGURES
from comparison.parsers import draw_parser

if __name__ == "__main__":
    draw_parser().parse_known_args()  # shows --help before the imports below, which take seconds

import statistics
from collections.abc import Mapping
from typing import Any

from comparison.arguments import parse_arguments
from comparison.cells import Cell
from comparison.contenders import ABLATIONS
from comparison.markdown import interval, paired
from comparison.plan import best_options, seeds
from comparison.probes import LEVELS, as_history, as_panel, watch
from comparison.registry import ALL, TITLES
from comparison.steps import ALONE, CONTROLS, LEARNED
from comparison.timing import read_times
from comparison.training import one_thread
from tqdm import tqdm

from pml_gca import visualize
from pml_gca.utils.command_line import told_when_stopped

CURVES = ("none", "none_longer", "symmetrical_synthesis", "graph_hardest", "gca")
FINE_TUNED = ("none", "none_slow", "norm_classifier", "norm_classifier_own_rate", "gca_published")  # curves
WATCHED = ("none", "hdml", "gca")


class Results:
    """The finished runs of one loss.

    Args:
        loss: name of the loss.
        arguments: more arguments of compare_generators.py.
    """

    def __init__(self, loss: str, arguments: list[str]) -> None:
        self.loss = loss
        self.args = parse_arguments([*arguments, "--losses", loss])

    def cells(self, name: str) -> list[Cell]:
        """Return the runs of a contender, done or not; an empty list before its hyperparameters are chosen."""
        best = best_options(self.args, self.loss, name)
        return [] if best is None else seeds(self.args, self.loss, name, best[0])

    def runs(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the results of a contender by seed."""
        found = {cell.number: self.args.out.read(cell) for cell in self.cells(name)}
        return {seed: result for seed, result in found.items() if result is not None}

    def gains(self, names: list[str], base: str) -> dict[str, tuple[float, float] | float]:
        """Return points of Recall@1 over `base`, same seeds: mean and half the width of the 95% interval."""
        found = {name: self.runs(name) for name in {*names, base}}
        rows: dict[str, tuple[float, float] | float] = {}
        for name in names:
            if differences := paired(found, name, base):
                mean, half = interval([100 * difference for difference in differences])
                rows[TITLES[name]] = (mean, half) if len(differences) > 1 else mean
        return rows


def words(loss: str) -> str:
    """Return the name of a loss for a title."""
    return loss.replace("_", "-")


def convergence(results: Results) -> Any:
    """Draw Recall@1 on validation classes over iterations, and over seconds where iterations were timed."""
    names = FINE_TUNED if results.args.backbone else CURVES
    found = {name: runs for name in names if (runs := results.runs(name))}
    cells = {name: results.cells(name)[0] for name in found}
    times = {name: statistics.median(turns) for name, turns in read_times(cells, results.args.trials_from).items()}
    timed = times.keys() == found.keys()
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for name, runs in found.items():
        histories = [result["history"] for result in runs.values()]
        # Other processes slowed the runs: take the seconds of iterations that were timed in turns.
        seconds = [i * times.get(name, 0.0) for i in histories[0]["iterations"]]
        curves[TITLES[name]] = [{**history, "seconds": seconds} for history in histories]
    title = f"{words(results.loss)}: validation classes"
    return visualize.plot_curves(curves, title=title, seconds="seconds" if timed else None) if curves else None


def gains(results: Results) -> Any:
    """Draw the gain of all contenders over the loss alone."""
    names = [name for name in ALL if name not in ABLATIONS and name != "none"]
    rows = results.gains(names, "none")
    known = {TITLES[name]: "GCA-HNG" for name in LEARNED}
    known |= {TITLES[name]: "controls" for name in (*CONTROLS, *ALONE)}
    groups = {row: group for row, group in known.items() if row in rows}
    groups |= {row: "other generators" for row in rows if row not in known}
    title = f"{words(results.loss)}: gain over the loss alone, unseen classes"
    return visualize.plot_gains(rows, groups=groups, title=title) if rows else None


def ablations(results: Results) -> Any:
    """Draw the gain of GCA-HNG with a part changed over the whole."""
    rows = results.gains(list(ABLATIONS), "gca")
    title = f"{words(results.loss)}: GCA-HNG with a part changed, against the whole"
    return visualize.plot_gains(rows, title=title, xlabel="Recall@1 gained over GCA-HNG (points)") if rows else None


def watched(results: Results) -> dict[str, dict[str, Any]]:
    """Return what was seen in seed 0 of some contenders, by title; train and watch those that are missing."""
    found: dict[str, dict[str, Any]] = {}
    classes = None
    for name in WATCHED:
        for cell in results.cells(name)[:1]:
            with one_thread(), tqdm(total=cell.settings["iterations"], desc=f"watching {name}") as bar:
                found[TITLES[name]] = watch(cell, results.args.out, classes, bar.update)
            classes = classes or found[TITLES[name]]["classes"]
    return found


def hardness(results: Results) -> Any:
    """Draw how hard negatives are over training."""
    histories = {name: as_history(row) for name, row in watched(results).items()}
    histories = {name: history for name, history in histories.items() if history["iterations"]}
    title = f"{words(results.loss)}: hardness of the synthetic negatives"
    return visualize.plot_hardness(histories, levels=LEVELS, title=title) if histories else None


def negatives(results: Results) -> Any:
    """Draw where negatives lie among real samples at the end of training."""
    found = watched(results)
    if not found:
        return None
    one = next(iter(found.values()))
    return visualize.plot_synthetic_negatives(
        {name: as_panel(row) for name, row in found.items()},
        anchor_class=one["classes"][0],
        class_names=dict(zip(one["classes"], one["names"], strict=True)),
        title=f"{words(results.loss)}: four training classes and the negatives made for one",
    )


def main(argv: list[str] | None = None) -> None:
    """Draw what the arguments say."""
    args, rest = draw_parser().parse_known_args(argv)
    results = Results(args.loss, [*rest, "--seeds", args.seeds])
    draw = {f.__name__: f for f in (convergence, gains, ablations, hardness, negatives)}
    for name in args.figures:
        try:
            figure = draw[name](results)
        except (OSError, ValueError) as error:
            sys.exit(f"draw_evidence.py: {error}")
        if figure is None:
            print(f"{name}: no results in {results.args.out} yet")
            continue
        args.to.mkdir(parents=True, exist_ok=True)
        path = args.to / f"{name}_{args.loss}.png"
        figure.savefig(path, dpi=150)
        print(path)


if __name__ == "__main__":
    with told_when_stopped("finished figures are kept"):
        main()

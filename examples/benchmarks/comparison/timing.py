"""Time an iteration of each contender, in turns: a machine that slows down for a while slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from comparison.cells import Cell
from comparison.study import Study
from comparison.table import new_row, part_of
from comparison.training import Run

ROUNDS = 8  # for what is published
ITERATIONS = 10  # of each contender in a round
WARM_UP = 3


def time_iterations(
    cells: Mapping[str, Cell],
    study: Study,
    rounds: int,
    iterations: int = ITERATIONS,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Time training, image loading and distortion included, and keep the seconds of an iteration, round by round.

    Times of the same loss that the study had before are dropped: only turns side by side can be compared.

    Args:
        cells: a run of each contender of one loss, by name.
        study: keeps the times.
        rounds: how many turns each has.
        iterations: of a turn.
        tick: called after each turn.
    """
    running = {name: Run(cell) for name, cell in cells.items()}
    for run in running.values():
        for _ in range(WARM_UP):
            run.step()
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, run in running.items():
            began = time.perf_counter()
            for _ in range(iterations):
                run.step()
            seconds[name].append(round((time.perf_counter() - began) / iterations, 6))
            tick()
    loss = next(iter(cells.values())).loss
    times = study.times
    times.rows = {key: row for key, row in times.rows.items() if row["loss"] != loss}
    for cell, turns in zip(map(of_any_run, cells.values()), seconds.values(), strict=True):
        times.put(new_row(cell, seconds=turns))
    times.save()


def of_any_run(cell: Cell) -> Cell:
    """Return seed 0 without a length: an iteration of every run takes as long."""
    settings = {name: value for name, value in cell.settings.items() if name not in ("iterations", "evaluate_every")}
    return replace(cell, number=0, settings=settings)


def read_times(cells: Mapping[str, Cell], study: Study) -> dict[str, list[float]]:
    """Return the seconds of an iteration, round by round, of the contenders that were timed.

    Args:
        cells: a run of each contender of one loss, by name.
        study: with the times.

    Raises:
        ValueError: they were timed with other settings.
    """
    found = {}
    for name, cell in cells.items():
        timed = of_any_run(cell)
        row = study.times.find(timed, "time them again with --time")
        if row is not None:
            found[name] = part_of(row, ("seconds",), study.times.file, timed.key)["seconds"]
    return found


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the time of an iteration in units of the loss alone, median over rounds; empty without its times."""
    if "none" not in seconds:
        return {}
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds["none"], strict=True))
        for name, values in seconds.items()
    }

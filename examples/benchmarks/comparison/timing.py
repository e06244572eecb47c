"""What an iteration of each contender takes, timed in turns: a machine that is slow for a while is so for all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from comparison.cells import Cell, content_of, identity, part_of, provenance, read_of
from comparison.training import Run
from pml_gca.utils import runs

ROUNDS = 8
ITERATIONS = 10  # of each contender in a round
WARM_UP = 3


def file_of(folder: Path, loss: str) -> Path:
    """Where times are kept."""
    return folder / "time" / f"{loss}.json"


def time_iterations(
    cells: Mapping[str, Cell],
    folder: Path,
    rounds: int,
    iterations: int = ITERATIONS,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Time training, images drawn and distorted included, and keep the seconds of an iteration, round by round.

    Args:
        cells: a run of each contender of one loss, by name.
        folder: of the results.
        rounds: how often each has its turn; ``ROUNDS`` for what is published.
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
    file = file_of(folder, next(iter(cells.values())).loss)
    file.parent.mkdir(parents=True, exist_ok=True)
    timed = {name: identity(of_any_run(cell)) for name, cell in cells.items()}
    runs.write_json(file, {"cell": timed, **provenance(), "seconds": seconds})


def of_any_run(cell: Cell) -> Cell:
    """The first seed's, of no length: what an iteration takes is that of all."""
    settings = {name: value for name, value in cell.settings.items() if name not in ("iterations", "evaluate_every")}
    return replace(cell, number=0, settings=settings)


def read_times(cells: Mapping[str, Cell], folder: Path) -> dict[str, list[float]]:
    """Seconds of an iteration, round by round, of those contenders that have been timed.

    Args:
        cells: a run of each contender of one loss, by name.
        folder: of the results.

    Raises:
        ValueError: they were timed in another format or setting.
    """
    file = file_of(folder, next(iter(cells.values())).loss) if cells else None
    if file is None or not file.exists():
        return {}
    timed = content_of(file)["cell"]
    wanted = {name: identity(of_any_run(cells[name])) if name in cells else timed[name] for name in timed}
    seconds = part_of(read_of(wanted, file, "time them anew by --time"), "seconds", timed, file)
    return {name: values for name, values in seconds.items() if name in cells}


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Time of an iteration in units of that of the loss alone: median over rounds; empty if that was not timed."""
    if "none" not in seconds:
        return {}
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds["none"], strict=True))
        for name, values in seconds.items()
    }

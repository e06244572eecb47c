"""Training of the cells that are not done yet, in one process or several."""

import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from comparison.cells import Cell
from comparison.inputs import load_split
from comparison.study import Study
from comparison.training import one_thread, train

iterations_done: Any = None  # in a worker process: the counter that all of them share


def start_worker(shared: Any) -> None:
    """Prepare a worker process: it counts its iterations in `shared`, and uses one thread."""
    global iterations_done
    iterations_done = shared
    torch.set_num_threads(1)


def count(iterations: int = 1) -> None:
    """Add to the counter of all worker processes."""
    with iterations_done.get_lock():
        iterations_done.value += iterations


def work(cell: Cell, folder: Path) -> None:
    """Train a cell in a worker process, and keep the result."""
    result = train(cell, count)
    Study(folder).write(cell, result)
    if "diverged" in result:  # count the iterations that it did not reach
        count(cell.settings["iterations"] - result["diverged"] + 1)


def train_here(cell: Cell, what: str) -> dict[str, Any]:
    """Train a cell with a progress bar and one thread, as all cells are: the number of threads changes rounding."""
    with (
        one_thread(),
        tqdm(total=cell.settings["iterations"], desc=f"{what}: {cell.loss}, {cell.contender}") as bar,
    ):
        return train(cell, bar.update)


def train_missing(cells: Iterable[Cell], study: Study, processes: int, what: str) -> None:
    """Train the cells that the study does not have yet, and keep their results there.

    Raises:
        SystemExit: a worker process was killed.
        ValueError: the study has one of them with other settings.
    """
    waiting = [cell for cell in cells if study.read(cell) is None]
    if waiting and waiting[0].settings.get("frozen_through"):
        for split in ("train", "val", "test") if waiting[0].stage == "run" else ("train", "val"):
            load_split(waiting[0].settings, waiting[0].inputs, split)  # workers find its file
    if processes == 1 or len(waiting) < 2:
        for number, cell in enumerate(waiting, start=1):
            study.write(cell, train_here(cell, f"{what} {number}/{len(waiting)}"))
        return
    context = multiprocessing.get_context("spawn")
    shared = context.Value("q", 0)
    iterations = sum(cell.settings["iterations"] for cell in waiting)
    with (
        ProcessPoolExecutor(processes, context, start_worker, (shared,)) as pool,
        tqdm(total=iterations, desc=f"{what} 0/{len(waiting)}") as bar,
    ):
        try:
            running = {pool.submit(work, cell, study.folder) for cell in waiting}
            while running:
                done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for finished in done:
                    finished.result()
                bar.set_description(f"{what} {len(waiting) - len(running)}/{len(waiting)}", refresh=False)
                bar.update(shared.value - bar.n)
        except BrokenProcessPool:
            sys.exit(
                "compare_generators.py: a process was killed, perhaps for lack of memory. Finished cells are kept. Run "
                f"the command again with --processes {max(processes // 2, 1)}"
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

"""Generators of hard negatives against each other: equal networks, data and iterations, tuned alike, several seeds."""

import argparse
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from comparison.cells import Cell, load, machines, read, trial_options, write
from comparison.contenders import ABLATIONS, CONTENDERS, CONTROLS, LEARNED, LEARNING_RATES, STEPS
from comparison.network import WIDTHS
from comparison.tables import ablation_table, chosen_table, control_table, loss_table, step_table
from comparison.timing import ROUNDS, ratios, read_times, time_iterations
from comparison.training import FIXED, one_thread, train
from tqdm import tqdm

from pml_gca.losses import NAMED_LOSSES

ALL = {**CONTENDERS, **ABLATIONS}
AS_AVX2 = ("ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2", "MKL_ENABLE_INSTRUCTIONS=AVX2")
TITLES = {name: contender.title for name, contender in ALL.items()}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network on characters in 16 fonts with each generator and loss. Hyperparameters are "
        "chosen on validation classes, by the same number of trials for each, unless there are fewer choices; then the "
        "chosen ones are trained anew, over several seeds, and tested once. A cell that is done is not done again: "
        "kill it, and run it anew.",
    )
    add = parser.add_argument
    add("--losses", nargs="+", choices=NAMED_LOSSES, default=["n_pairs", "multi_similarity", "proxy_anchor"])
    add(
        "--generators",
        nargs="+",
        choices=ALL,
        metavar="NAME",
        help=f"{', '.join(ALL)} (default: those before {next(iter(ABLATIONS))}; reported are all)",
    )
    add("--trials", type=int, default=6, help="for each generator and loss (default: %(default)s)")
    add("--trial-iterations", type=int, default=800, help="of a trial (default: %(default)s)")
    add("--seeds", type=int, default=5, help="0 to N - 1 (default: %(default)s)")
    add("--iterations", type=int, default=2000, help="of a run (default: %(default)s)")
    add("--embedding-size", type=int, default=64, help="channels (default: %(default)s)")
    add("--image-size", type=int, default=32, help="side of the images, in pixels (default: %(default)s)")
    add("--no-augment", dest="augment", action="store_false", help="distort a training image always alike, not afresh")
    add("--evaluate-every", type=int, default=100, help="iterations (default: %(default)s)")
    add(
        "--processes",
        type=int,
        default=max((os.cpu_count() or 2) // 2, 1),
        help="of one thread each (default: %(default)s)",
    )
    add("--out", type=Path, default=Path("docs/evidence"), metavar="DIR", help="(default: %(default)s)")
    add(
        "--trials-from",
        type=Path,
        metavar="DIR",
        help="folder of other results, whose trials choose, and whose times count (default: that of --out)",
    )
    add("--report", action="store_true", help="print the tables of what is there, and train nothing")
    add("--time", action="store_true", help="time the iterations of those that are tuned, and train nothing else")
    add("--repeat", type=Path, metavar="FILE", help="train the cell of a result file anew, and compare")
    args = parser.parse_args(argv)
    args.generators = args.generators or list(ALL if args.report else CONTENDERS)
    if args.trials_from and args.time:
        parser.error("--time goes with --out alone: times are kept beside the trials")
    args.trials_from = args.trials_from or args.out
    for name in ("trials", "trial_iterations", "seeds", "iterations", "embedding_size", "evaluate_every", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.image_size < 16:
        parser.error(f"--image-size must be at least 16, which the network halves four times, got {args.image_size}")
    if args.embedding_size % 2:
        parser.error(f"--embedding-size must be divisible by the 2 heads of the graph, got {args.embedding_size}")
    return args


def settings(args: argparse.Namespace, iterations: int) -> dict[str, Any]:
    """What all cells of a stage have in common."""
    return {
        "iterations": iterations,
        "embedding_size": args.embedding_size,
        "image_size": args.image_size,
        "classes_per_batch": 27,
        "samples_per_class": 3,
        "evaluate_every": args.evaluate_every,
        "augment": args.augment,
        "widths": WIDTHS,
        **FIXED,
    }


def trials(args: argparse.Namespace, loss: str, name: str) -> list[Cell]:
    """Cells by which hyperparameters are chosen."""
    name = ALL[name].tuned_as or name
    tuned = {"lr": LEARNING_RATES, **ALL[name].tuned}
    chosen = trial_options(name, loss, tuned, args.trials)
    common = settings(args, args.trial_iterations)
    return [Cell("tune", loss, name, i, options, common, ALL[name].recipe) for i, options in enumerate(chosen)]


def best_options(args: argparse.Namespace, loss: str, name: str) -> tuple[dict[str, Any], float] | None:
    """The options with the best Recall@1 on validation classes; None while trials are missing."""
    cells = trials(args, loss, name)
    remedy = "choose another --out" if args.trials_from == args.out else "choose another --trials-from"
    found = [read(cell, args.trials_from, remedy) for cell in cells]
    if any(result is None for result in found):
        return None
    recalls = [result["val_recall_at_1"] for result in found if result is not None]
    best = max(range(len(cells)), key=recalls.__getitem__)
    return ALL[name].completed(cells[best].options), recalls[best]


def tried(args: argparse.Namespace, loss: str, name: str) -> str:
    """How many of how many choices were tried."""
    there_are = math.prod(len(values) for values in (LEARNING_RATES, *ALL[name].tuned.values()))
    return f"{len(trials(args, loss, name))} of {there_are}"


def seeds(args: argparse.Namespace, loss: str, name: str, options: dict[str, Any]) -> list[Cell]:
    """Cells that are tested, seed by seed."""
    common = settings(args, args.iterations * ALL[name].length)
    return [Cell("run", loss, name, seed, options, common, ALL[name].recipe) for seed in range(args.seeds)]


def one_of_each(args: argparse.Namespace, loss: str) -> dict[str, Cell]:
    """A run of each contender whose hyperparameters are chosen, asked for or not."""
    best = {name: best_options(args, loss, name) for name in ALL}
    return {name: seeds(args, loss, name, found[0])[0] for name, found in best.items() if found is not None}


def time_all(args: argparse.Namespace) -> None:
    """Time the contenders of each loss in turns, with one thread, as they are trained.

    Raises:
        ValueError: of a loss, none is tuned.
    """
    for loss in args.losses:
        cells = one_of_each(args, loss)
        if not cells:
            raise ValueError(f"nothing is tuned for {loss} in {args.out} yet, so that there is nothing to time")
        with one_thread(), tqdm(total=ROUNDS * len(cells), desc=f"timing: {loss}", unit="turn") as bar:
            time_iterations(cells, args.out, ROUNDS, tick=bar.update)


iterations_done: Any = None  # in a process of several: the counter that all share


def count_for(shared: Any) -> None:
    """Prepare a process of several: it counts its iterations there, and has one thread."""
    global iterations_done
    iterations_done = shared
    torch.set_num_threads(1)


def count(iterations: int = 1) -> None:
    with iterations_done.get_lock():
        iterations_done.value += iterations


def work(cell: Cell, folder: Path) -> None:
    """Train a cell and keep what came of it."""
    result = train(cell, count)
    write(cell, folder, result)
    if "diverged" in result:  # the rest will not come
        count(cell.settings["iterations"] - result["diverged"] + 1)


def train_here(cell: Cell, what: str) -> dict[str, Any]:
    """Train a cell with a progress bar, and with one thread, as all are: sums are then rounded alike."""
    with (
        one_thread(),
        tqdm(total=cell.settings["iterations"], desc=f"{what}: {cell.loss}, {cell.contender}") as bar,
    ):
        return train(cell, bar.update)


def do(cells: Iterable[Cell], args: argparse.Namespace, what: str) -> None:
    """Train the cells that are not done yet."""
    waiting = [cell for cell in cells if read(cell, args.out) is None]
    if args.processes == 1 or len(waiting) < 2:
        for number, cell in enumerate(waiting, start=1):
            write(cell, args.out, train_here(cell, f"{what} {number}/{len(waiting)}"))
        return
    context = multiprocessing.get_context("spawn")
    shared = context.Value("q", 0)
    iterations = sum(cell.settings["iterations"] for cell in waiting)
    with (
        ProcessPoolExecutor(args.processes, context, count_for, (shared,)) as pool,
        tqdm(total=iterations, desc=f"{what} 0/{len(waiting)}") as bar,
    ):
        try:
            running = {pool.submit(work, cell, args.out) for cell in waiting}
            while running:
                done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for cell_done in done:
                    cell_done.result()
                bar.set_description(f"{what} {len(waiting) - len(running)}/{len(waiting)}", refresh=False)
                bar.update(shared.value - bar.n)
        except BrokenProcessPool:
            sys.exit(
                "compare_generators.py: a process was killed, perhaps for want of memory; what is done is kept: run it "
                f"anew with --processes {max(args.processes // 2, 1)}"
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def report(args: argparse.Namespace) -> str:
    """All tables, as Markdown."""
    parts = []
    for loss in args.losses:
        chosen, results, made_with = {}, {}, set[str]()
        for name in args.generators:
            best = best_options(args, loss, name)
            if best is None:
                continue
            tested = seeds(args, loss, name, best[0])
            found = {cell.number: read(cell, args.out) for cell in tested}
            done = {seed: result for seed, result in found.items() if result is not None}
            if done:
                results[name] = done
            elif args.trials_from != args.out:
                continue  # others' trials, of which nothing was made here
            made_with |= machines(trials(args, loss, name), args.trials_from) | machines(tested, args.out)
            if ALL[name].tuned_as is None:
                chosen[name] = (*best, tried(args, loss, name))
        if chosen or results:
            times = ratios(read_times(one_of_each(args, loss), args.trials_from))
            whole = {name: done for name, done in results.items() if name not in ABLATIONS}
            parts += [f"## {loss}", loss_table(whole, TITLES, times)]
            parts += [control_table(results, TITLES, LEARNED, CONTROLS), step_table(results, TITLES, STEPS)]
            parts += [ablation_table(results, TITLES, "gca", list(ABLATIONS), times)]
            if chosen:
                parts += ["Chosen on validation classes:", chosen_table(chosen, TITLES)]
            parts += [f"Trained with {' and '.join(sorted(made_with))}."]
    return "\n\n".join(part for part in parts if part)


def repeat(file: Path) -> None:
    """Train the cell of a file anew, and show both results.

    Raises:
        SystemExit: they differ.
    """
    cell, machine, before = load(file)
    after = train_here(cell, "again")
    scores = {name: (before[name], after[name]) for name in ("val_recall_at_1",)}
    scores |= {name: (value, after["metrics"][name]) for name, value in before.get("metrics", {}).items()}
    for name, (old, new) in scores.items():
        print(f"{name:<28} {100 * old:.4f}% {100 * new:.4f}% {'same' if old == new else 'DIFFERENT'}")
    if any(old != new for old, new in scores.values()):
        sys.exit(
            f"differs from {file}, which was made by {machine}; other processors and versions round otherwise (x86 "
            f"with more than AVX2 rounds as AVX2 does with {' '.join(AS_AVX2)})"
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.repeat:
        try:
            return repeat(args.repeat)
        except (OSError, ValueError) as error:
            sys.exit(f"compare_generators.py: {error}")
    pairs = [(loss, name) for loss in args.losses for name in args.generators]
    try:
        if args.time:
            time_all(args)
        elif not args.report:
            if args.trials_from == args.out:
                cells = {cell.file(args.out): cell for pair in pairs for cell in trials(args, *pair)}
                do(cells.values(), args, "tuning")
            runs = []
            for loss, name in pairs:
                best = best_options(args, loss, name)
                if best is None:
                    raise ValueError(f"{args.trials_from} has not all trials of {loss}, {name}; tune there first")
                runs += seeds(args, loss, name, best[0])
            # Seed by seed, so that what is there at any time can be compared.
            do(sorted(runs, key=lambda cell: cell.number), args, "runs")
        tables = report(args)
        if not tables and any(args.out.glob("run/*/*/*.json")):
            raise ValueError(f"there are runs in {args.out}, and no trials in {args.trials_from}; give --trials-from")
    except (OSError, ValueError) as error:
        sys.exit(f"compare_generators.py: {error}")
    print(tables or f"nothing in {args.out} yet")


if __name__ == "__main__":
    main()

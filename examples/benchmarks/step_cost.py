"""Measure what a training step of HardNegativeGenerationLoss costs on this machine, beside a naive implementation."""

import argparse
import sys

from cost.parsers import step_cost_parser

if __name__ == "__main__":
    step_cost_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

import difflib
import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cost import memory, timing
from cost.case import Case, cpu_multiplies_bf16, processor_name
from cost.plot import plot
from cost.report import Row, growth_lines, legend, part_lines, speed_lines, table, write_csv
from cost.workload import Workload, deviation_from_fp32, matrix_products, torchvision_models, trunk_step
from tqdm import tqdm

from pml_gca.utils.command_line import check_minimums, told_when_stopped
from pml_gca.utils.files import write_text


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments, with defaults filled in."""
    parser = step_cost_parser()
    args = parser.parse_args(argv)
    args.threads = torch.get_num_threads() if args.threads is None else args.threads
    check_arguments(parser, args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what argparse cannot, count the classes, and sort the batch sizes. Exit with a message at an error."""
    at_least_1 = ("embedding_size", "num_layers", "num_heads", "edge_chunk_size", "repeats", "threads")
    check_minimums(parser, args, batch_size=2, samples_per_class=2, **dict.fromkeys(at_least_1, 1))
    check_minimums(parser, args, image_size=32, naive_up_to=0)
    if min(args.batch_size) <= args.samples_per_class:
        parser.error(
            "--batch-size must exceed --samples-per-class, because a batch of one class has no negatives, got "
            f"{min(args.batch_size)} and {args.samples_per_class}"
        )
    if args.embedding_size % args.num_heads:
        parser.error(f"--embedding-size must be divisible by --num-heads, got {args.embedding_size}, {args.num_heads}")
    classes = -(-max(args.batch_size) // args.samples_per_class)
    if args.num_classes is None:
        args.num_classes = max(100, classes)
    if args.num_classes < classes:
        parser.error(f"--num-classes must be at least {classes}, the classes of a batch, got {args.num_classes}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if args.device == "cpu" and "tf32" in args.precision:
        parser.error("--precision tf32 needs --device cuda")
    if args.device == "cpu" and args.cuda_graph:
        parser.error("--cuda-graph needs --device cuda")
    if args.trunk is not None:
        if importlib.util.find_spec("torchvision") is None:
            parser.error("--trunk needs torchvision")
        models = torchvision_models()
        names = models.list_models(module=models)
        if args.trunk not in names:
            near = difflib.get_close_matches(args.trunk, names, 3) or ["resnet50"]
            parser.error(f"--trunk: torchvision has no classifier {args.trunk!r}; try {', '.join(near)}")
    if args.plot is not None:
        if args.plot.suffix.lower() != ".png":
            parser.error(f"--plot must name a .png file, got {args.plot}")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib")
    args.batch_size, args.precision, args.edge_chunk_size = (
        list(dict.fromkeys(values)) for values in (sorted(args.batch_size), args.precision, args.edge_chunk_size)
    )


def cases_of(args: argparse.Namespace, batch_size: int) -> list[Case]:
    """Return everything to measure for one batch size."""
    shared = ("device", "samples_per_class", "embedding_size", "num_layers", "num_heads", "num_classes", "threads")
    settings: dict[str, Any] = {name: getattr(args, name) for name in shared}
    cases = []
    for precision in args.precision:
        plain = Case(batch_size, precision, **settings)
        cases += [replace(plain, is_naive=True)] if batch_size <= args.naive_up_to else []
        cases += [plain, *(replace(plain, edge_chunk_size=size) for size in args.edge_chunk_size)]
        cases += [replace(plain, classify_among="batch")] if args.classify_among_batch else []
        cases += [replace(plain, compile=True)] if args.compile else []
        cases += [replace(plain, cuda_graph=True)] if args.cuda_graph else []
    return cases


def measure_batch_size(args: argparse.Namespace, batch_size: int, say: Callable[[str], None]) -> list[Row]:
    """Return all rows of one batch size. Memory is measured in fresh processes, times in this one.

    Args:
        args: of the command line.
        batch_size: B.
        say: called with what is done next.
    """
    rows = [Row(case) for case in cases_of(args, batch_size)]
    tasks: dict[tuple[str, Any], Callable[[], Any]] = {}
    for k, row in enumerate(rows):
        case, captured = row.case, ["propagation", "step"]
        if not args.no_memory or case.cuda_graph:  # a fresh process also finds out what can be captured
            say(f"memory of {case.name}, {case.precision}")
            found = memory.in_fresh_process(case, Path(__file__))
            row.peak_bytes, row.note = found.get("peak_bytes"), found.get("error", "")
            if case.name == "pml-gca" and not row.note:
                found = memory.in_fresh_process(case, Path(__file__), "--first-step")
                row.first_step = found.get("first_step")
            captured = found.get("captured", [] if row.note else captured)
        if not captured:
            continue  # a capture would fail here, too, and might break this process
        say(f"setting up {case.name}, {case.precision}")
        work = Workload(case)
        if not case.is_naive:
            with row.case.arithmetic():
                cost = work.generator.cost(batch_size, row.case.samples_per_class)
            row.multiply_adds, row.estimated_bytes = cost.multiply_adds, cost.bytes
        for name in captured:
            run: Callable[[], None] = getattr(work, name)
            tasks[name, k] = timing.captured(run) if case.cuda_graph else run
            for _ in range(3 if case.compile else 0):  # compile; on a GPU also capture, which takes the second call
                run()
        if case.name == "pml-gca":
            tasks["loss alone", k], tasks["optimizer", k] = work.loss_alone, work.optimize
            tasks["fused optimizer", k] = work.optimize_fused
    multiply_adds = {}
    for precision in args.precision:
        case = Case(batch_size, precision, device=args.device, embedding_size=args.embedding_size)
        tasks["matrix products", precision], multiply_adds[precision] = matrix_products(case)
        if args.trunk is not None:
            tasks[args.trunk, precision] = trunk_step(case, args.trunk, args.image_size)

    # Time all propagations, then all steps: tasks that are compared with each other run side by side.
    order = sorted(tasks, key=lambda task: task[0])
    times = timing.interleaved(
        {task: tasks[task] for task in order}, args.repeats, args.device, lambda task: say(describe(task, rows))
    )
    bandwidth = timing.copy_bandwidth() if args.device == "cuda" else None
    for k, row in enumerate(rows):
        precision = row.case.precision
        row.propagation, row.step = times.get(("propagation", k), []), times.get(("step", k), [])
        row.alone, row.optimizer = times.get(("loss alone", k), []), times.get(("optimizer", k), [])
        row.fused = times.get(("fused optimizer", k), [])
        if ("step", k) in tasks and not row.step:
            row.note = row.note or "out of memory while the others held theirs"
        row.trunk = times.get((args.trunk, precision), [])
        products = times.get(("matrix products", precision))
        row.rate = multiply_adds[precision] / statistics.median(products) if products else None
        row.bandwidth = bandwidth
    return rows


def describe(task: tuple[str, Any], rows: list[Row]) -> str:
    """Name a task for the progress bar."""
    name, which = task
    return f"{name} of {rows[which].case.name}, {rows[which].case.precision}" if isinstance(which, int) else name


def deviations(args: argparse.Namespace) -> list[str]:
    """Say how far the other precisions are from fp32."""
    lines = []
    plain = next(case for case in cases_of(args, args.batch_size[0]) if case.name == "pml-gca")
    for precision in args.precision:
        if precision != "fp32":
            coefficient, loss = deviation_from_fp32(replace(plain, precision=precision))
            lines.append(
                f"{precision} against fp32, B {plain.batch_size}: coefficients differ by at most {coefficient:.1e}, "
                f"the loss by {loss:.2%}."
            )
    if args.device == "cpu" and "bf16" in args.precision and not cpu_multiplies_bf16():
        lines.append("This CPU has no bf16 matrix instructions: bf16 saves memory here, not time.")
    return lines


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.probe is not None:
        print(json.dumps(memory.probe(Case(**json.loads(args.probe)))))
        return
    if args.first_step is not None:
        print(json.dumps(memory.first_step(Case(**json.loads(args.first_step)))))
        return
    torch.set_num_threads(args.threads)
    header = (
        f"{processor_name(args.device)}, {args.threads} CPU threads, torch {torch.__version__}; "
        f"D {args.embedding_size}, K {args.num_layers}, H {args.num_heads}, {args.num_classes} classes, "
        f"{args.samples_per_class} samples of a class in a batch"
    )
    rows: list[Row] = []
    notes = deviations(args)
    counts = [cases_of(args, b) for b in args.batch_size]
    # For each case a process, a set-up and two tasks a round; in each round also products, parts of a step, the trunk.
    extra = (4 + (args.trunk is not None)) * len(args.precision)
    total = sum(len(c) * (2 - args.no_memory) + (args.repeats + 1) * (2 * len(c) + extra) for c in counts)
    with tqdm(total=total, file=sys.stderr, unit="run") as bar:
        for batch_size in args.batch_size:

            def say(what: str, batch_size: int = batch_size) -> None:
                bar.set_description(f"B {batch_size}: {what}")
                bar.update()

            rows += measure_batch_size(args, batch_size, say)
            if args.compile:
                torch.compiler.reset()  # each batch size compiles again, as a run of that size does
            lines = [*legend(rows), *growth_lines(rows), *speed_lines(rows), *part_lines(rows), *notes]
            text = "\n\n".join([f"*{header}*", table(rows), "\n".join(f"- {line}" for line in lines)]) + "\n"
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                write_text(args.out / "step_cost.md", text)
                write_csv(rows, args.out / "step_cost.csv")
            if args.plot is not None:
                plot(rows, header, args.plot)
        bar.update(total - bar.n)
    print(text)


if __name__ == "__main__":
    with told_when_stopped("finished batch sizes are in --out, if it was given"):
        main()

"""What a training step of HardNegativeGenerationLoss costs on this machine, beside a naive implementation of it."""

import argparse
import difflib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Case, Workload
from report import Row, growth_lines, legend, plot, speed_lines, table, write_csv
from tqdm import tqdm


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time and memory of a training step of HardNegativeGenerationLoss, against the same mathematics "
        "written down naively, against the machine's own matrix products, and as a share of training a trunk. Prints a "
        "Markdown table.",
        epilog="Example: step_cost.py --batch-size 64 128 256 512 --edge-chunk-size 4096 --out cost --plot cost.png",
    )
    add = parser.add_argument
    add("--batch-size", type=int, nargs="+", default=[81], metavar="B", help="one or more (default: 81)")
    add("--samples-per-class", type=int, default=3, metavar="M", help="in a batch (default: %(default)s)")
    add("--embedding-size", type=int, default=512, metavar="D", help="channels (default: %(default)s)")
    add("--num-layers", type=int, default=2, metavar="K", help="rounds of propagation (default: %(default)s)")
    add("--num-heads", type=int, default=4, metavar="H", help="of the node attention (default: %(default)s)")
    add("--num-classes", type=int, metavar="N", help="of training (default: 100, or what the largest batch has)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add(
        "--precision",
        choices=("fp32", "tf32", "bf16"),
        nargs="+",
        default=["fp32"],
        help="one or more; tf32 on a GPU only, bf16 by autocast (default: fp32)",
    )
    add("--edge-chunk-size", type=int, nargs="+", default=[], metavar="N", help="also with bounded edge memory")
    add("--compile", action="store_true", help="also with torch.compile, fullgraph, of the propagation")
    add("--cuda-graph", action="store_true", help="also as CUDA graphs, where they can be captured")
    add("--trunk", metavar="NAME", help="a torchvision classifier, such as resnet50: the loss's share of its training")
    add("--image-size", type=int, default=224, metavar="S", help="side of the trunk's images (default: %(default)s)")
    add("--repeats", type=int, default=5, metavar="R", help="timings of each, interleaved (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="T", help="of the CPU (default: %(default)s)")
    add("--naive-up-to", type=int, default=160, metavar="B", help="largest batch done naively (default: %(default)s)")
    add("--no-memory", action="store_true", help="do not measure memory, which takes a fresh process for each row")
    add("--out", type=Path, metavar="DIR", help="folder for step_cost.md and step_cost.csv")
    add("--plot", type=Path, metavar="FILE.png", help="time and memory against the batch size")
    add("--probe", help=argparse.SUPPRESS)  # what the fresh processes are started with
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    return args


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    at_least = {"batch_size": 2, "samples_per_class": 2, "edge_chunk_size": 1, "image_size": 32, "naive_up_to": 0}
    for name in ("embedding_size", "num_layers", "num_heads", "repeats", "threads"):
        at_least[name] = 1
    for name, least in at_least.items():
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value < least:
                parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if min(args.batch_size) <= args.samples_per_class:
        parser.error(
            f"--batch-size must exceed --samples-per-class, as a batch of one class has no negatives, got "
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
        models = measure.torchvision_models()
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
    """Everything to measure for one batch size."""
    shared = ("device", "samples_per_class", "embedding_size", "num_layers", "num_heads", "num_classes", "threads")
    settings: dict[str, Any] = {name: getattr(args, name) for name in shared}
    cases = []
    for precision in args.precision:
        plain = Case(batch_size, precision, **settings)
        cases += [replace(plain, is_naive=True)] if batch_size <= args.naive_up_to else []
        cases += [plain, *(replace(plain, edge_chunk_size=size) for size in args.edge_chunk_size)]
        options = product({False, args.compile}, {False, args.cuda_graph})
        cases += [replace(plain, compile=c, cuda_graph=g) for c, g in sorted(options) if c or g]
    return cases


def measure_batch_size(args: argparse.Namespace, batch_size: int, say: Callable[[str], None]) -> list[Row]:
    """All rows of one batch size: memory in fresh processes, then times in this one."""
    rows = [Row(case) for case in cases_of(args, batch_size)]
    tasks: dict[tuple[str, Any], Callable[[], Any]] = {}
    for k, row in enumerate(rows):
        case, captured = row.case, ["propagation", "step"]
        if not args.no_memory or case.cuda_graph:  # what cannot be captured shows in a fresh process, too
            say(f"memory of {case.name}, {case.precision}")
            found = measure.in_fresh_process(case, Path(__file__))
            row.peak_bytes, row.note = found.get("peak_bytes"), found.get("error", "")
            captured = found.get("captured", [] if row.note else captured)
        if not captured:
            continue  # what failed there would fail here, and might take this process along
        say(f"setting up {case.name}, {case.precision}")
        work = Workload(case)
        if not case.is_naive:
            with row.case.arithmetic():
                cost = work.generator.cost(batch_size, row.case.samples_per_class)
            row.multiply_adds, row.estimated_bytes = cost.multiply_adds, cost.bytes
        for name in captured:
            run: Callable[[], None] = getattr(work, name)
            tasks[name, k] = measure.captured(run) if case.cuda_graph else run
    multiply_adds = {}
    for precision in args.precision:
        case = Case(batch_size, precision, device=args.device, embedding_size=args.embedding_size)
        tasks["matrix products", precision], multiply_adds[precision] = measure.matrix_products(case)
        if args.trunk is not None:
            tasks[args.trunk, precision] = measure.trunk_step(case, args.trunk, args.image_size)

    # All propagations, then all steps: what is compared lies side by side.
    order = sorted(tasks, key=lambda task: task[0])
    times = measure.interleaved(
        {task: tasks[task] for task in order}, args.repeats, args.device, lambda task: say(describe(task, rows))
    )
    bandwidth = measure.copy_bandwidth() if args.device == "cuda" else None
    for k, row in enumerate(rows):
        precision = row.case.precision
        row.propagation, row.step = times.get(("propagation", k), []), times.get(("step", k), [])
        if ("step", k) in tasks and not row.step:
            row.note = row.note or "out of memory beside the others"
        row.trunk = times.get((args.trunk, precision), [])
        products = times.get(("matrix products", precision))
        row.rate = multiply_adds[precision] / statistics.median(products) if products else None
        row.bandwidth = bandwidth
    return rows


def describe(task: tuple[str, Any], rows: list[Row]) -> str:
    name, which = task
    return f"{name} of {rows[which].case.name}, {rows[which].case.precision}" if isinstance(which, int) else name


def deviations(args: argparse.Namespace) -> list[str]:
    """How far the other precisions are from fp32."""
    lines = []
    plain = next(case for case in cases_of(args, args.batch_size[0]) if case.name == "pml-gca")
    for precision in args.precision:
        if precision != "fp32":
            coefficient, loss = measure.deviation_from_fp32(replace(plain, precision=precision))
            lines.append(
                f"{precision} against fp32, B {plain.batch_size}: coefficients differ by {coefficient:.1e} at most, "
                f"the loss by {loss:.2%}."
            )
    if args.device == "cpu" and "bf16" in args.precision and not measure.cpu_multiplies_bf16():
        lines.append("This CPU has no bf16 matrix instructions: bf16 saves memory here, not time.")
    return lines


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.probe is not None:
        print(json.dumps(measure.probe(Case(**json.loads(args.probe)))))
        return
    torch.set_num_threads(args.threads)
    header = (
        f"{measure.machine(args.device)}, {args.threads} CPU threads, torch {torch.__version__}; "
        f"D {args.embedding_size}, K {args.num_layers}, H {args.num_heads}, {args.num_classes} classes, "
        f"{args.samples_per_class} samples of a class in a batch"
    )
    rows: list[Row] = []
    notes = deviations(args)
    counts = [cases_of(args, b) for b in args.batch_size]
    # Of each case a process and a set-up, and twice a round; of each round the matrix products and the trunk.
    extra = (1 + (args.trunk is not None)) * len(args.precision)
    total = sum(len(c) * (2 - args.no_memory) + (args.repeats + 1) * (2 * len(c) + extra) for c in counts)
    with tqdm(total=total, file=sys.stderr, unit="run") as bar:
        for batch_size in args.batch_size:

            def say(what: str, batch_size: int = batch_size) -> None:
                bar.set_description(f"B {batch_size}: {what}")
                bar.update()

            rows += measure_batch_size(args, batch_size, say)
            if args.compile:
                torch.compiler.reset()  # every batch size compiles afresh, as a run with it would
            lines = [*legend(rows), *growth_lines(rows), *speed_lines(rows), *notes]
            text = "\n\n".join([f"*{header}*", table(rows), "\n".join(f"- {line}" for line in lines)]) + "\n"
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                (args.out / "step_cost.md").write_text(text, encoding="utf-8")
                write_csv(rows, args.out / "step_cost.csv")
            if args.plot is not None:
                plot(rows, header, args.plot)
        bar.update(total - bar.n)
    print(text)


if __name__ == "__main__":
    main()

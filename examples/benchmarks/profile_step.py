"""Show where a training step of HardNegativeGenerationLoss spends its time: by part of the step, and by kernel."""

from cost.parsers import profile_step_parser

if __name__ == "__main__":
    profile_step_parser().parse_args()  # shows --help and typing errors before the imports below, which take seconds

from collections import Counter
from typing import Any

import torch
from cost.case import Case, processor_name
from cost.workload import Workload
from torch.profiler import ProfilerActivity, profile

from pml_gca.utils.command_line import told_when_stopped
from pml_gca.utils.tables import markdown_table

STEPS = 3
"""Profiled steps; as many warm up before."""


def main(argv: list[str] | None = None) -> None:
    parser = profile_step_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    print(f"{processor_name(args.device)}, torch {torch.__version__}\n")
    for batch_size in args.batch_size:
        sizes = {name: getattr(args, name) for name in ("embedding_size", "num_layers", "num_heads", "compile")}
        classes = max(100, -(-batch_size // 3))
        case = Case(batch_size, args.precision, device=args.device, num_classes=classes, **sizes)
        print(report(case, args.rows))


def report(case: Case, rows: int) -> str:
    """Profile steps of a case; return two tables: of the outermost operations, and of kernels (on a CPU, operations).

    Args:
        case: what to profile.
        rows: of each table.
    """
    work = Workload(case)
    for _ in range(STEPS):
        work.step()
    on_gpu = case.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            work.step()
        if on_gpu:
            torch.cuda.synchronize()
    parts: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    host = 0.0
    for event in profiler.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        outermost, own = outermost_name(event), event.self_cpu_time_total / 1e3 / STEPS
        host += own
        if not on_gpu:
            parts[outermost] += own
            kernels[event.name] += own
            calls[event.name] += 1
        for kernel in event.kernels:
            parts[outermost] += kernel.duration / 1e3 / STEPS
            kernels[kernel.name] += kernel.duration / 1e3 / STEPS
            calls[kernel.name] += 1
    total = sum(kernels.values())
    setting = f"B {case.batch_size}, D {case.embedding_size}, K {case.num_layers}, {case.precision}"
    title = f"{setting}: {total:.2f} ms a step"
    if on_gpu:
        title += f" on the device in {sum(calls.values()) / STEPS:.0f} kernels, {host:.2f} ms of the host, profiled"
    return "\n\n".join(
        [
            title,
            table("part of the step", parts, total, rows),
            table("kernel" if on_gpu else "operation", kernels, total, rows, calls),
            "",
        ]
    )


def outermost_name(event: Any) -> str:
    """Return the name of the outermost operation that an event belongs to."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
    return event.name.removeprefix("autograd::engine::evaluate_function: ")


def table(what: str, times: Counter[str], total: float, rows: int, calls: Counter[str] | None = None) -> str:
    """Return the largest times as a Markdown table."""
    header = [what, "ms", "share", *([] if calls is None else ["calls"])]
    lines = [
        [name[:110], f"{ms:.3f}", f"{ms / total:.1%}", *([] if calls is None else [f"{calls[name] / STEPS:g}"])]
        for name, ms in times.most_common(rows)
    ]
    return markdown_table(header, lines, left=1)


if __name__ == "__main__":
    with told_when_stopped("nothing is kept"):
        main()

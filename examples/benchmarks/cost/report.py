"""The table of step_cost.py, its CSV file, and the sentences below the table."""

import csv
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cost.case import Case
from pml_gca.utils.files import write_atomically
from pml_gca.utils.tables import markdown_table


@dataclass
class Row:
    """The measurements of one case.

    Attributes:
        case: how the step was computed.
        propagation, step, trunk: seconds, one for each repeat; empty if not timed.
        alone, optimizer, fused: likewise, of the wrapped loss without the generator, and of AdamW without and with
            `fused=True`.
        first_step: seconds of the first step in a fresh process, with what it sets up.
        rate: multiply-adds per second of bare matrix products.
        bandwidth: bytes per second of a copy on a GPU.
        peak_bytes: measured memory of a step.
        multiply_adds, estimated_bytes: of a step, as `generator.cost` counts them.
        note: what could not be measured, and why.
    """

    case: Case
    propagation: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    trunk: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    fused: list[float] = field(default_factory=list)
    first_step: float | None = None
    rate: float | None = None
    bandwidth: float | None = None
    peak_bytes: int | None = None
    multiply_adds: int | None = None
    estimated_bytes: int | None = None
    note: str = ""


def quotient(a: float | None, b: float | None) -> float | None:
    """Return a / b; None if one is missing or b is 0."""
    return a / b if a is not None and b else None


def median(times: list[float]) -> float | None:
    """Return the median; None without times."""
    return statistics.median(times) if times else None


def quartiles(times: list[float]) -> tuple[float | None, float | None]:
    """Return the first and third quartile; twice the median of fewer than two times."""
    if len(times) < 2:
        return median(times), median(times)
    first, _, third = statistics.quantiles(times, method="inclusive")
    return first, third


def record(row: Row, rows: list[Row]) -> dict[str, Any]:
    """Return a line of the CSV file by column: a row's measurements, and their ratios to those of other rows."""
    case = row.case
    alike = [r for r in rows if (r.case.batch_size, r.case.precision) == (case.batch_size, case.precision)]
    slow = next((r for r in alike if r.case.is_naive), Row(case))
    plain = next((r for r in alike if r.case.name == "pml-gca"), Row(case))
    propagation, step, trunk = median(row.propagation), median(row.step), median(row.trunk)
    arithmetic = quotient(row.multiply_adds, row.rate)
    # At least, each activation is written once and read once.
    traffic = quotient(row.estimated_bytes and 2 * row.estimated_bytes, row.bandwidth)
    floor = max(arithmetic, traffic) if arithmetic is not None and traffic is not None else None
    propagation_quartiles, step_quartiles = quartiles(row.propagation), quartiles(row.step)
    return {
        "batch_size": case.batch_size,
        "precision": case.precision,
        "how": case.name,
        "propagation_s": propagation,
        "propagation_quartile1_s": propagation_quartiles[0],
        "propagation_quartile3_s": propagation_quartiles[1],
        "propagation_speedup": quotient(median(slow.propagation), propagation),
        "step_s": step,
        "step_quartile1_s": step_quartiles[0],
        "step_quartile3_s": step_quartiles[1],
        "step_speedup": quotient(median(slow.step), step),
        "step_of_plain": None if case.is_naive else quotient(step, median(plain.step)),
        "multiply_adds": row.multiply_adds,
        "matrix_multiply_adds_per_s": row.rate,
        "efficiency": quotient(arithmetic, step),
        "arithmetic_floor_s": arithmetic if floor else None,
        "traffic_floor_s": traffic if floor else None,
        "step_of_floor": quotient(step, floor),
        "peak_bytes": row.peak_bytes,
        "peak_of_naive": quotient(row.peak_bytes, slow.peak_bytes),
        "estimated_bytes": row.estimated_bytes,
        "loss_alone_s": median(row.alone),
        "optimizer_s": median(row.optimizer),
        "fused_optimizer_s": median(row.fused),
        "first_step_s": row.first_step,
        "trunk_s": trunk,
        "share_of_training": quotient(step, step + trunk if step is not None and trunk is not None else None),
        "note": row.note,
    }


def spread(found: dict[str, Any], name: str) -> str:
    """Write a median and its quartiles in ms."""
    middle, low, high = (found[f"{name}{part}_s"] for part in ("", "_quartile1", "_quartile3"))
    return "" if middle is None else f"{1000 * middle:.4g} ({1000 * low:.4g}–{1000 * high:.4g})"


def number(value: float | None, form: str, factor: float = 1) -> str:
    """Format a number; return "" for None."""
    return "" if value is None else format(factor * value, form)


def table(rows: list[Row]) -> str:
    """Return a Markdown table, without the columns that no row has a value for."""
    cells: list[dict[str, str]] = []
    for found in (record(row, rows) for row in rows):
        floors = [s for s in (found["arithmetic_floor_s"], found["traffic_floor_s"]) if s is not None]
        cells.append(
            {
                "B": str(found["batch_size"]),
                "precision": found["precision"],
                "how": found["how"],
                "propagation, ms": spread(found, "propagation"),
                "propagation, × naive's speed": number(found["propagation_speedup"], ".2f"),
                "loss step, ms": spread(found, "step"),
                "step, × naive's speed": number(found["step_speedup"], ".2f"),
                "step, × plain's time": number(found["step_of_plain"], ".2f"),
                "multiply-adds, 10⁹": number(found["multiply_adds"], ".4g", 1e-9),
                "of matrix-product rate": number(found["efficiency"], ".0%"),
                "floor, ms": number(max(floors, default=None), ".3g", 1000),
                "step, × floor": number(found["step_of_floor"], ".1f"),
                "peak memory, MB": number(found["peak_bytes"], ".0f", 1e-6),
                "estimated, MB": number(found["estimated_bytes"], ".0f", 1e-6),
                "memory, × naive's": number(found["peak_of_naive"], ".2f"),
                "trunk step, ms": number(found["trunk_s"], ".4g", 1000),
                "loss's share": number(found["share_of_training"], ".1%"),
            }
        )
    titles = [title for title in cells[0] if any(line[title] for line in cells)]
    return markdown_table(titles, [[line[title] for title in titles] for line in cells], left=3)


def legend(rows: list[Row]) -> list[str]:
    """Return sentences that explain the columns, and say what could not be measured."""
    lines = [
        "Times are medians and quartiles of interleaved repeats. *Propagation*: one pass through the graph, forward "
        "and backward. *Loss step*: everything that the loss adds to an iteration, optimizer included; the naive one "
        "passes the graph twice, as in the published schedule. *Plain*: pml-gca without options, in the same "
        "precision. *Of matrix-product rate*: the step's multiply-adds per second, as a share of the rate of bare "
        "matrix products of the same widths. *Peak memory*: of a loss step, in addition to parameters and optimizer "
        "state, in a process of its own."
    ]
    if any(row.bandwidth for row in rows):
        lines[0] += (
            " *Floor*: the time of the multiply-adds at the matrix-product rate, or the time to write and read the "
            "estimated bytes once at the bandwidth of a copy, whichever is longer."
        )
    for precision in dict.fromkeys(row.case.precision for row in rows):
        rates = {r.case.batch_size: r.rate for r in rows if r.case.precision == precision and r.rate}
        if rates:
            at = ", ".join(f"{2e-9 * rate:.4g} at B {size}" for size, rate in rates.items())
            lines.append(f"Matrix products of an edge MLP's widths, {precision}, GFLOP/s: {at}.")
    if bandwidth := next((row.bandwidth for row in rows if row.bandwidth), None):
        lines.append(f"Copy: {1e-9 * bandwidth:.0f} GB/s.")
    lines += [f"B {r.case.batch_size}, {r.case.precision}, {r.case.name}: {r.note}." for r in rows if r.note]
    return lines


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Group the rows that differ in batch size only, by name. Name the precision if there are several."""
    several = len({row.case.precision for row in rows}) > 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.case.name}, {row.case.precision}" if several else row.case.name, []).append(row)
    return found


def growth(rows: list[Row], what: str = "step") -> float | None:
    """Return the exponent of B in the time of a step or a propagation; None for fewer than three batch sizes.

    It is the slope of log time over log batch size.
    """
    timed = [(row.case.batch_size, getattr(row, what)) for row in rows]
    points = [(math.log(size), math.log(statistics.median(times))) for size, times in timed if times]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) >= 3 else None


def growth_lines(rows: list[Row]) -> list[str]:
    """Say how time grows with the batch size, where there are three sizes or more."""
    lines = []
    for title, what in (("Propagation", "propagation"), ("Loss step", "step")):
        exponents = {name: growth(of, what) for name, of in series(rows).items()}
        lines += [f"{title}, {name}: time grows as B^{e:.2f}." for name, e in exponents.items() if e is not None]
    return lines


def speed_lines(rows: list[Row]) -> list[str]:
    """Say how much faster than fp32 the other precisions are."""
    fp32 = {(r.case.batch_size, r.case.name): median(r.step) for r in rows if r.case.precision == "fp32"}
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        case = row.case
        ratio = quotient(fp32.get((case.batch_size, case.name)), median(row.step))
        if case.precision != "fp32" and ratio is not None:
            found.setdefault((case.precision, case.name), []).append(f"{ratio:.2f} (B {case.batch_size})")
    return [f"Loss step, {how}: {p} runs at {', '.join(at)} of the speed of fp32." for (p, how), at in found.items()]


def part_lines(rows: list[Row]) -> list[str]:
    """Say what the wrapped loss alone, the optimizer and the first step take."""
    lines = []
    for row in rows:
        parts = {
            "the wrapped loss alone": median(row.alone),
            "AdamW": median(row.optimizer),
            "AdamW with fused=True": median(row.fused),
            "the first step of a process, with building the generator": row.first_step,
        }
        said = ", ".join(f"{name} {number(seconds, '.3g', 1000)} ms" for name, seconds in parts.items() if seconds)
        lines += [f"B {row.case.batch_size}, {row.case.precision}, {row.case.name}: {said}."] if said else []
    return lines


def write_csv(rows: list[Row], path: Path) -> None:
    """Write one line for each row, with the columns of `record`."""
    records = [record(row, rows) for row in rows]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)

    write_atomically(path, write)

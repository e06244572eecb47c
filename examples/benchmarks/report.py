"""The tables and the plot of step_cost.py."""

import csv
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Case, growth_exponent

# Okabe and Ito's colours, which the colour-blind can tell apart; the marker says it once more.
STYLES = (
    ("#D55E00", "s"),
    ("#0072B2", "o"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)


@dataclass
class Row:
    """What was measured of a case; times in seconds, one for each repeat, none if it was not timed.

    Attributes:
        rate: multiply-adds a second of the matrix products.
        bandwidth: bytes a second of a copy, on a GPU.
        peak_bytes: measured memory of a step.
        multiply_adds, estimated_bytes: of a step, as ``generator.cost`` counts them.
        note: what could not be measured, and why.
    """

    case: Case
    propagation: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    trunk: list[float] = field(default_factory=list)
    rate: float | None = None
    bandwidth: float | None = None
    peak_bytes: int | None = None
    multiply_adds: int | None = None
    estimated_bytes: int | None = None
    note: str = ""


def quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def median(times: list[float]) -> float | None:
    return statistics.median(times) if times else None


def quartiles(times: list[float]) -> tuple[float | None, float | None]:
    if len(times) < 2:
        return median(times), median(times)
    first, _, third = statistics.quantiles(times, method="inclusive")
    return first, third


def record(row: Row, rows: list[Row]) -> dict[str, Any]:
    """A row with all that follows from it and from its neighbours, by column of the CSV file."""
    case = row.case
    alike = [r for r in rows if (r.case.batch_size, r.case.precision) == (case.batch_size, case.precision)]
    slow = next((r for r in alike if r.case.is_naive), Row(case))
    plain = next((r for r in alike if r.case.name == "pml-gca"), Row(case))
    propagation, step, trunk = median(row.propagation), median(row.step), median(row.trunk)
    arithmetic = quotient(row.multiply_adds, row.rate)
    # At the least, every activation is written once and read once.
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
        "trunk_s": trunk,
        "share_of_training": quotient(step, step + trunk if step is not None and trunk is not None else None),
        "note": row.note,
    }


def spread(found: dict[str, Any], name: str) -> str:
    middle, low, high = (found[f"{name}{part}_s"] for part in ("", "_quartile1", "_quartile3"))
    return "" if middle is None else f"{1000 * middle:.4g} ({1000 * low:.4g}–{1000 * high:.4g})"


def number(value: float | None, form: str, factor: float = 1) -> str:
    return "" if value is None else format(factor * value, form)


def table(rows: list[Row]) -> str:
    """Markdown; a column in which nothing was measured is left out."""
    cells: list[dict[str, str]] = []
    for found in (record(row, rows) for row in rows):
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
                "floor, ms": number(max_or_none(found["arithmetic_floor_s"], found["traffic_floor_s"]), ".3g", 1000),
                "step, × floor": number(found["step_of_floor"], ".1f"),
                "peak memory, MB": number(found["peak_bytes"], ".0f", 1e-6),
                "estimated, MB": number(found["estimated_bytes"], ".0f", 1e-6),
                "memory, × naive's": number(found["peak_of_naive"], ".2f"),
                "trunk step, ms": number(found["trunk_s"], ".4g", 1000),
                "loss's share": number(found["share_of_training"], ".1%"),
            }
        )
    titles = [title for title in cells[0] if any(line[title] for line in cells)]
    words = ("B", "precision", "how")
    lines = [titles, ["---" if title in words else "--:" for title in titles]]
    lines += [[line[title] for title in titles] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def max_or_none(a: float | None, b: float | None) -> float | None:
    return max(a, b) if a is not None and b is not None else None


def legend(rows: list[Row]) -> list[str]:
    """What the columns are, and what could not be measured."""
    lines = [
        "Times are medians and quartiles of interleaved repeats. *Propagation*: graph, forward and backward. *Loss "
        "step*: everything that the loss adds to an iteration, optimizer included; the naive one has the two graph "
        "passes of the published schedule. *Plain*: pml-gca without options, in the same precision. *Of matrix-product "
        "rate*: counted multiply-adds over the time that matrix products of the same widths take for as many. *Peak "
        "memory*: of a loss step, beyond parameters and optimizer state, in a process of its own."
    ]
    if any(row.bandwidth for row in rows):
        lines[0] += (
            " *Floor*: the longer of the multiply-adds at the matrix-product rate, and of the estimated bytes written "
            "and read once at the bandwidth of a copy."
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
    """Rows that differ in batch size only, by name; the precision is named where there are several."""
    several = len({row.case.precision for row in rows}) > 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.case.name}, {row.case.precision}" if several else row.case.name, []).append(row)
    return found


def growth(rows: list[Row], what: str = "step") -> float | None:
    """Exponent of B in the time of a step or a propagation; None for less than three batch sizes."""
    timed = [(row.case.batch_size, getattr(row, what)) for row in rows]
    points = [(size, statistics.median(times)) for size, times in timed if times]
    return growth_exponent([b for b, _ in points], [s for _, s in points]) if len(points) >= 3 else None


def growth_lines(rows: list[Row]) -> list[str]:
    lines = []
    for title, what in (("Propagation", "propagation"), ("Loss step", "step")):
        exponents = {name: growth(of, what) for name, of in series(rows).items()}
        lines += [f"{title}, {name}: time grows as B^{e:.2f}." for name, e in exponents.items() if e is not None]
    return lines


def speed_lines(rows: list[Row]) -> list[str]:
    """How much faster than fp32 the other precisions are."""
    fp32 = {(r.case.batch_size, r.case.name): median(r.step) for r in rows if r.case.precision == "fp32"}
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        case = row.case
        ratio = quotient(fp32.get((case.batch_size, case.name)), median(row.step))
        if case.precision != "fp32" and ratio is not None:
            found.setdefault((case.precision, case.name), []).append(f"{ratio:.2f} (B {case.batch_size})")
    return [f"Loss step, {how}: {p} runs at {', '.join(at)} of the speed of fp32." for (p, how), at in found.items()]


def write_csv(rows: list[Row], path: Path) -> None:
    records = [record(row, rows) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Time and memory of a step against the batch size, both axes logarithmic, growth in the legend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for k, (name, of) in enumerate(series(rows).items()):
        color, marker = STYLES[k % len(STYLES)]
        style = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.8, "capsize": 3}
        exponent = growth(of)
        label = name if exponent is None else f"{name}: time ∝ B$^{{{exponent:.2f}}}$"
        timed = [(row.case.batch_size, statistics.median(row.step), quartiles(row.step)) for row in of if row.step]
        bars = [[m - (low or m) for _, m, (low, _) in timed], [(high or m) - m for _, m, (_, high) in timed]]
        time.errorbar([b for b, _, _ in timed], [m for _, m, _ in timed], bars, label=label, **style)
        held = [(row.case.batch_size, row.peak_bytes / 1e9) for row in of if row.peak_bytes]
        memory.errorbar([b for b, _ in held], [gb for _, gb in held], **style)
    for panel, quantity in ((time, "Time of a loss step, s (quartiles)"), (memory, "Peak memory of a loss step, GB")):
        panel.set(title=quantity)
        if not any(len(line.get_xdata()) for line in panel.lines):
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center")
            continue  # an axis without data cannot be logarithmic
        panel.set(xscale="log", yscale="log", xlabel="Batch size B")
        panel.xaxis.set(
            major_locator=FixedLocator(sorted({row.case.batch_size for row in rows})),
            minor_locator=NullLocator(),
            major_formatter="{x:.0f}",
        )
        panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
        panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)

"""Markdown tables of the comparison: means, 95% intervals, and paired differences to the loss alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pml_gca.utils.tables import markdown_table

Result = Mapping[str, Any]  # of a run

# Two-sided 95% quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% interval: nan for fewer than two values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = T95[min(len(values) - 2, len(T95) - 1)]  # with more, a little too wide
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def cell_text(values: Sequence[float], *, sign: bool = False) -> str:
    """Return mean ± half interval, in percent."""
    mean, half = interval([100 * value for value in values])
    shown = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.1f}"


def paired(results: Mapping[str, Mapping[int, Result]], name: str, base: str) -> list[float]:
    """Return Recall@1 of a contender minus that of another, for the seeds that both have."""
    after, before = results.get(name, {}), results.get(base, {})
    both = [seed for seed in after if seed in before]
    return [after[seed]["metrics"]["recall_at_1"] - before[seed]["metrics"]["recall_at_1"] for seed in both]


def reach(result: Result, alone: Result) -> float | None:
    """Return when a run first reaches the validation Recall@1 that the loss alone ends with.

    Returns:
        Iterations, as a share of all iterations of the loss alone; None if it never reaches it.
    """
    history, base = result["history"], alone["history"]
    for iteration, recall in zip(history["iterations"], history["recall_at_1"], strict=True):
        if recall >= base["recall_at_1"][-1]:
            share: float = iteration / base["iterations"][-1]
            return share
    return None


def reach_shares(seeds: Mapping[int, Result], alone: Mapping[int, Result]) -> list[float]:
    """Return `reach` of each seed; an empty list if one never reaches it, or the loss alone has no such seed."""
    found = [reach(seeds[seed], alone[seed]) for seed in seeds if seed in alone]
    reached = [share for share in found if share is not None]
    return reached if len(reached) == len(found) else []


def percent(shares: Sequence[float]) -> str:
    """Return mean ± half interval; a dash for an empty list."""
    if not shares:
        return "–"
    mean, half = interval([100 * share for share in shares])
    return f"{mean:.0f}%" if math.isnan(half) else f"{mean:.0f} ± {half:.0f}%"


def loss_table(
    results: Mapping[str, Mapping[int, Result]], titles: Mapping[str, str], ratios: Mapping[str, float] | None = None
) -> str:
    """Return the main table of one loss; empty without results.

    Args:
        results: by contender and seed; those of `"none"`, the loss alone, are the base of differences.
        titles: of the contenders.
        ratios: time of an iteration in units of the loss alone, where it was measured.
    """
    if not results:
        return ""
    ratios = ratios or {}
    alone = results.get("none", {})
    head = ["", "seeds", "Recall@1", "difference to the loss alone, same seeds", "MAP@R"]
    head += ["reaches the loss alone after, of its iterations"]
    head += ["time of an iteration", "of its time"] if ratios else []
    lines = []
    for name, seeds in results.items():
        differences = paired(results, name, "none")
        shares, ratio = reach_shares(seeds, alone), ratios.get(name)
        line = [
            titles[name],
            str(len(seeds)),
            cell_text([result["metrics"]["recall_at_1"] for result in seeds.values()]),
            cell_text(differences, sign=True) if differences and name != "none" else "",
            cell_text([result["metrics"]["mean_average_precision_at_r"] for result in seeds.values()]),
            percent(shares),
        ]
        if ratio is not None:
            line += [f"{ratio:.2f} ×", percent([share * ratio for share in shares])]
        lines.append([*line, *("" for _ in head[len(line) :])])
    return markdown_table(head, lines)


def control_table(
    results: Mapping[str, Mapping[int, Result]], titles: Mapping[str, str], ours: Sequence[str], controls: Sequence[str]
) -> str:
    """Return a table of Recall@1 of some contenders minus that of each control, same seeds; empty without such."""
    found = {name: [paired(results, name, control) for control in controls] for name in ours}
    columns = [name for name in ours if any(found[name])]
    if not columns:
        return ""
    lines = []
    for i, control in enumerate(controls):
        differences = [found[name][i] for name in columns]
        if any(differences):
            lines.append([titles[control], *(cell_text(d, sign=True) if d else "" for d in differences)])
    return markdown_table(["Recall@1 less that of", *(titles[name] for name in columns)], lines)


def step_table(
    results: Mapping[str, Mapping[int, Result]], titles: Mapping[str, str], steps: Sequence[tuple[str, str]]
) -> str:
    """Return a table of what single steps gain: Recall@1 of the second contender minus that of the first."""
    lines = []
    for base, name in steps:
        if differences := paired(results, name, base):
            lines.append([titles[base], titles[name], cell_text(differences, sign=True)])
    return markdown_table(["from", "to", "Recall@1 gained, same seeds"], lines, left=2) if lines else ""


def ablation_table(
    results: Mapping[str, Mapping[int, Result]],
    titles: Mapping[str, str],
    whole: str,
    parts: Sequence[str],
    ratios: Mapping[str, float] | None = None,
) -> str:
    """Return a table of a contender and its ablations; empty if none of these was run.

    Args:
        results: by contender and seed.
        titles: of the contenders.
        whole: the contender.
        parts: names of its ablations.
        ratios: time of an iteration in units of the loss alone, where it was measured.
    """
    ratios = ratios or {}
    names = [name for name in parts if name in results]
    if not names:
        return ""
    head = ["", "seeds", "Recall@1", "difference to the whole, same seeds", "MAP@R"]
    head += ["time of an iteration"] if ratios else []
    lines = []
    for name in (*([whole] if whole in results else []), *names):
        differences = [] if name == whole else paired(results, name, whole)
        runs = results[name].values()
        line = [
            titles[name],
            str(len(runs)),
            cell_text([result["metrics"]["recall_at_1"] for result in runs]),
            cell_text(differences, sign=True) if differences else "",
            cell_text([result["metrics"]["mean_average_precision_at_r"] for result in runs]),
        ]
        if ratios:
            line += [f"{ratios[name]:.2f} ×" if name in ratios else ""]
        lines.append(line)
    return markdown_table(head, lines)


def screen_table(results: Mapping[str, Mapping[int, float]], titles: Mapping[str, str]) -> str:
    """Return a table of Recall@1 on validation classes.

    Args:
        results: by contender and seed; those of `"none"`, the loss alone, are the base of differences.
        titles: of the contenders.
    """
    lines, alone = [], results.get("none", {})
    for name, recalls in results.items():
        differences = [recalls[seed] - alone[seed] for seed in recalls if seed in alone and name != "none"]
        shown = cell_text(differences, sign=True) if differences else ""
        lines.append([name, titles[name], str(len(recalls)), cell_text(list(recalls.values())), shown])
    return markdown_table(
        ["", "", "seeds", "validation Recall@1", "difference to the loss alone, same seeds"], lines, left=2
    )


def chosen_table(chosen: Mapping[str, tuple[Mapping[str, Any], float, str]], titles: Mapping[str, str]) -> str:
    """Return a table of what the validation classes chose for one loss.

    Args:
        chosen: options, their validation Recall@1, and how many of how many choices were tried, by contender.
        titles: of the contenders.
    """
    lines = []
    for name, (options, recall, tried) in chosen.items():
        lines.append([titles[name], ", ".join(f"{k}={v}" for k, v in options.items()), tried, f"{100 * recall:.1f}"])
    return markdown_table(["", "chosen", "tried", "validation Recall@1"], lines, left=2)

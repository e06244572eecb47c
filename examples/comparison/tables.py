"""Tables of the comparison: mean, 95% interval, and the paired difference to the loss alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]  # of a run

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval; the latter is nan for fewer than two values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan
    quantile = T95[len(values) - 2] if len(values) - 2 < len(T95) else 1.96
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def cell_text(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± half interval, in percent."""
    mean, half = interval([100 * value for value in values])
    shown = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return shown if math.isnan(half) else f"{shown} ± {half:.1f}"


def paired(results: Mapping[str, Mapping[int, Result]], name: str, base: str) -> list[float]:
    """Recall@1 of a contender less that of another, for the seeds that both have."""
    after, before = results.get(name, {}), results.get(base, {})
    both = [seed for seed in after if seed in before]
    return [after[seed]["metrics"]["recall_at_1"] - before[seed]["metrics"]["recall_at_1"] for seed in both]


def reach(result: Result, alone: Result) -> float | None:
    """When a run first reaches the validation Recall@1 that the loss alone ends with.

    Returns:
        Iterations, as a share of those that the loss alone takes in all; None if it never does.
    """
    history, base = result["history"], alone["history"]
    for iteration, recall in zip(history["iterations"], history["recall_at_1"], strict=True):
        if recall >= base["recall_at_1"][-1]:
            share: float = iteration / base["iterations"][-1]
            return share
    return None


def reach_share(seeds: Mapping[int, Result], alone: Mapping[int, Result]) -> float | None:
    """Mean of :func:`reach` over seeds; None if a seed never does, or there is nothing to reach."""
    found = [reach(seeds[seed], alone[seed]) for seed in seeds if seed in alone]
    reached = [share for share in found if share is not None]
    return statistics.mean(reached) if found and len(reached) == len(found) else None


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}%"


def loss_table(
    results: Mapping[str, Mapping[int, Result]], titles: Mapping[str, str], ratios: Mapping[str, float] | None = None
) -> str:
    """Markdown for one loss.

    Args:
        results: by contender and seed; of ``"none"``, the loss alone, too.
        titles: of the contenders.
        ratios: time of an iteration in units of that of the loss alone, where it was measured.
    """
    ratios = ratios or {}
    alone = results.get("none", {})
    head = ["", "seeds", "Recall@1", "difference to the loss alone, same seeds", "MAP@R"]
    head += ["reaches the loss alone after, of its iterations", "time of an iteration", "of its time"]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for name, seeds in results.items():
        differences = paired(results, name, "none")
        share, ratio = reach_share(seeds, alone), ratios.get(name)
        time = None if share is None or ratio is None else share * ratio
        lines.append(
            [
                titles[name],
                str(len(seeds)),
                cell_text([result["metrics"]["recall_at_1"] for result in seeds.values()]),
                cell_text(differences, sign=True) if differences and name != "none" else "",
                cell_text([result["metrics"]["mean_average_precision_at_r"] for result in seeds.values()]),
                "" if name == "none" else percent(share),
                "" if ratio is None else f"{ratio:.2f} ×",
                "" if name == "none" or ratio is None else percent(time),
            ]
        )
    return as_markdown(lines)


def control_table(
    results: Mapping[str, Mapping[int, Result]], titles: Mapping[str, str], ours: Sequence[str], controls: Sequence[str]
) -> str:
    """Markdown: Recall@1 of some contenders less that of each control, same seeds; empty where none has both."""
    rows = {name: [paired(results, name, control) for control in controls] for name in ours}
    shown = [i for i in range(len(controls)) if any(differences[i] for differences in rows.values())]
    if not shown:
        return ""
    lines = [["Recall@1 less that of", *(titles[controls[i]] for i in shown)], ["---", *("---:" for _ in shown)]]
    for name, differences in rows.items():
        if any(differences):
            texts = [cell_text(differences[i], sign=True) if differences[i] else "" for i in shown]
            lines.append([titles[name], *texts])
    return as_markdown(lines)


def chosen_table(chosen: Mapping[str, tuple[Mapping[str, Any], float]], titles: Mapping[str, str]) -> str:
    """What was chosen on the validation classes for one loss: options and Recall@1 there, by contender."""
    lines = [["", "chosen", "validation Recall@1"], ["---", "---", "---:"]]
    for name, (options, recall) in chosen.items():
        lines.append([titles[name], ", ".join(f"{k}={v}" for k, v in options.items()), f"{100 * recall:.1f}"])
    return as_markdown(lines)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, of which the second line holds alignments."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

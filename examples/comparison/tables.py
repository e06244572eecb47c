"""Tables of the comparison: mean, 95% interval, and the paired difference to the loss alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

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


def loss_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]], titles: Mapping[str, str]) -> str:
    """Markdown for one loss.

    Args:
        results: by contender and seed; of ``"none"``, the loss alone, too.
        titles: of the contenders.
    """
    alone = results.get("none", {})
    head = ["", "seeds", "Recall@1", "difference to the loss alone, same seeds", "MAP@R", "s/iteration"]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for name, seeds in results.items():
        recalls = {seed: result["metrics"]["recall_at_1"] for seed, result in seeds.items()}
        both = [seed for seed in recalls if seed in alone]
        paired = [recalls[seed] - alone[seed]["metrics"]["recall_at_1"] for seed in both]
        iterations = [result["seconds"] / result["history"]["iterations"][-1] for result in seeds.values()]
        lines.append(
            [
                titles[name],
                str(len(seeds)),
                cell_text(list(recalls.values())),
                cell_text(paired, sign=True) if paired and name != "none" else "",
                cell_text([result["metrics"]["mean_average_precision_at_r"] for result in seeds.values()]),
                f"{statistics.mean(iterations):.3f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chosen_table(chosen: Mapping[str, tuple[Mapping[str, Any], float]], titles: Mapping[str, str]) -> str:
    """What was chosen on the validation classes for one loss: options and Recall@1 there, by contender."""
    lines = [["", "chosen", "validation Recall@1"], ["---", "---", "---:"]]
    for name, (options, recall) in chosen.items():
        lines.append([titles[name], ", ".join(f"{k}={v}" for k, v in options.items()), f"{100 * recall:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Learning curves."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch

from .fonts import any_script
from .shared import COLOURS, MARKERS, import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Sequence[float]]

_STYLES = ("-", "--", ":", "-.")


def _table(name: str, seeds: Run | Sequence[Run], keys: Sequence[str]) -> torch.Tensor:
    """Return the values of a run, shape (seeds, keys, evaluations)."""
    runs: list[Any] = [seeds] if isinstance(seeds, Mapping) else list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not all(isinstance(run, Mapping) for run in runs):
        raise ValueError(f"runs[{name!r}] is {seeds!r}; expected a mapping from {list(keys)}, or several, one per seed")
    if not runs:
        raise ValueError(f"runs[{name!r}] is empty; expected a mapping or several, one per seed")
    rows = []
    for run in runs:
        missing = [key for key in keys if key not in run]
        if missing:
            raise ValueError(f"runs[{name!r}] lacks {missing}; it has {sorted(run)}")
        rows.append([torch.tensor([float(x) for x in run[key]], dtype=torch.float64, device="cpu") for key in keys])
    lengths = {len(values) for row in rows for values in row}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"runs[{name!r}] has sequences of lengths {sorted(lengths)}; expected one length, at least 1, "
            f"for {list(keys)} and for all seeds"
        )
    table = torch.stack([torch.stack(row) for row in rows])
    if not bool(table.isfinite().all()):
        raise ValueError(f"runs[{name!r}] holds values that are not finite")
    if not bool((table[:, 0] == table[0, 0]).all()):
        raise ValueError(f"runs[{name!r}] has seeds evaluated at different {keys[0]!r}")
    return table


def _spread(positions: Sequence[float], gap: float, ceiling: float) -> list[float]:
    """Return the positions in the same order, none above `ceiling`, moved at least `gap` apart."""
    spread = list(positions)
    order = sorted(range(len(spread)), key=spread.__getitem__)
    for _ in range(500):  # enough to converge for any readable number of lines
        spread[order[-1]] = min(spread[order[-1]], ceiling)
        for lower, upper in pairwise(order):
            push = max(0.0, gap - (spread[upper] - spread[lower])) / 2
            spread[lower] -= push
            spread[upper] += push
    return spread


def _draw_panel(ax: "Axes", tables: Mapping[str, torch.Tensor], row: int, xlabel: str) -> list[Any]:
    """Draw all runs over the given row of their tables. Return the labels of the last values, one per run."""
    right = max(float(table[:, row].mean(0).max()) for table in tables.values()) * 1.02
    right = right if right > 0 else 1.0
    notes = []
    for number, (name, table) in enumerate(tables.items()):
        name = name if len(table) == 1 else f"{name} (mean ± s.d. of {len(table)} seeds)"
        colour = COLOURS[number % len(COLOURS)]
        style = _STYLES[number // len(COLOURS) % len(_STYLES)]
        x, y = table[:, row].mean(0).tolist(), table[:, -1].mean(0)
        last = float(y[-1])
        if len(table) > 1:
            deviation = table[:, -1].std(0)
            low, high = (y - deviation).tolist(), (y + deviation).tolist()
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        marks = sorted({*range(0, len(x), max(1, len(x) // 20)), len(x) - 1})
        marker = MARKERS[number % len(MARKERS)]
        (line,) = ax.plot(x, y.tolist(), style, color=colour, linewidth=1.8, label=name)
        line.set(marker=marker, markersize=4, markevery=marks)
        # Lead from a run that ended early to its value at the right edge.
        ax.plot([x[-1], right], [last, last], ":", color=colour, linewidth=1, alpha=0.7)
        notes.append(
            ax.annotate(
                f"{last:.3g}" if abs(last) < 1 else f"{last:.1f}",
                xy=(1, last),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=9,
                fontweight="bold",
                annotation_clip=False,
            )
        )
    ax.set_xlim(0, right)
    ax.set_xlabel(xlabel, fontsize=10)
    ax.grid(color="#e3e3e3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    return notes


@any_script
def plot_curves(
    runs: Mapping[str, Run | Sequence[Run]],
    metric: str = "recall_at_1",
    *,
    metric_label: str = "Recall@1",
    percent: bool = True,
    iterations: str = "iterations",
    seconds: str | None = "seconds",
    title: str | None = None,
) -> "Figure":
    """Draw a metric of several runs against training iterations and against training time.

    Each run is one line with its last value at the right edge. A run with several seeds is drawn as the mean, with a
    band of one standard deviation (n - 1 in the denominator) to either side. In the time panel its points lie at the
    mean time of the seeds.

    Args:
        runs: for each run's name, a mapping with sequences of one length under the keys `iterations`,
            `seconds` and `metric`. Several seeds are a sequence of such mappings, evaluated at the same
            iterations. Iterations and seconds count from the start of training and must not be negative.
        metric: the key of the metric.
        metric_label: its name on the axis.
        percent: draw a metric in [0, 1] in percent; otherwise draw it as it is.
        iterations: the key of the iterations.
        seconds: the key of the seconds; None draws no time panel.
        title: title of the figure.

    Returns:
        A figure with two axes (one without `seconds`) and a legend below them.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: `runs` is empty or a run is not as described.
    """
    matplotlib = import_matplotlib()
    if not isinstance(runs, Mapping) or len(runs) == 0:
        raise ValueError("runs must be a mapping from a run's name to its values, with at least one run")
    keys = [iterations, *([] if seconds is None else [seconds]), metric]
    tables = {name: _table(name, seeds, keys) for name, seeds in runs.items()}
    for name, table in tables.items():
        if bool((table[:, :-1] < 0).any()):
            raise ValueError(f"runs[{name!r}] holds a negative value under {keys[:-1]}")
        if percent:
            if float(table[:, -1].min()) < 0 or float(table[:, -1].max()) > 1 + 1e-6:
                raise ValueError(f"runs[{name!r}] has {metric!r} outside [0, 1]; give percent=False")
            table[:, -1] *= 100
    xlabels = ["Training iterations", "Training time (s)"][: len(keys) - 1]
    figure = matplotlib.figure.Figure(figsize=(0.6 + 4.3 * len(xlabels), 3.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.04)
    panels = figure.subplots(1, len(xlabels), sharey=True, squeeze=False)[0]
    notes = [_draw_panel(ax, tables, row, xlabels[row]) for row, ax in enumerate(panels)]
    panels[0].set_ylabel(f"{metric_label} (%)" if percent else metric_label, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12)
    handles = panels[0].get_lines()[::2]  # by hand: matplotlib leaves out names that begin with an underscore
    room = 56 * len(xlabels)  # in characters
    fitting = int(room / (max(len(handle.get_label()) for handle in handles) + 6))
    columns = max(1, min(len(handles), fitting))
    names = [fill(handle.get_label(), room - 6) for handle in handles]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    # Lay the figure out to get the heights of the labels, then move labels apart.
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    for ax, labels in zip(panels, notes, strict=True):
        ceiling = float(ax.bbox.y1) * points - 3
        heights = [float(ax.transData.transform(label.xy)[1]) * points for label in labels]
        for label, height, wanted in zip(labels, heights, _spread(heights, 11.5, ceiling), strict=True):
            label.set_position((5, wanted - height))
    return figure

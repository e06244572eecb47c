"""What `HardNegativeGenerationLoss.logs` tells, over training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .shared import COLOURS, add_title, grid, import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOM = 0.13  # for a line of the legend, in units of the data's height

Logs = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class _Panel:
    """A panel: its title, and the label of each line by its name in the logs."""

    title: str
    lines: Mapping[str, str]
    logarithmic: bool = False
    spread: str | None = None  # name of a standard deviation, drawn as a band around the first line


_PANELS = (
    _Panel("Metric loss", {"metric_loss": "of the batch", "metric_level": "running mean, L"}),
    _Panel("Synthetic loss", {"synthetic_loss": "with its weight", "synthetic_weight": "its weight"}),
    _Panel(
        "Terms of the generator",
        {
            "generator_loss": "all, as added to the total",
            "generation_loss": "objective of the negatives",
            "node_classification_loss": "node classification",
        },
    ),
    _Panel("Coefficients λ", {"lambda_mean": "mean ± standard deviation"}, spread="lambda_std"),
    _Panel(
        "Similarity to the anchor",
        {
            "hardest_synthetic_similarity": "hardest synthetic negative",
            "hardest_real_similarity": "hardest real negative",
        },
    ),
    _Panel(
        "Gradient norm",
        {"generator_gradient_norm": "generator", "embedding_gradient_norm": "embeddings"},
        logarithmic=True,
    ),
)


def _points(logs: Logs, iterations: str, name: str) -> tuple[list[float], list[float]]:
    """Return where the logs have a finite value of this name, and the values."""
    found = [(float(x[iterations]), float(x[name])) for x in logs if name in x and math.isfinite(x[name])]
    return [x for x, _ in found], [y for _, y in found]


def _draw_panel(ax: "Axes", panel: _Panel, logs: Logs, iterations: str) -> None:
    for number, (name, label) in enumerate(panel.lines.items()):
        x, y = _points(logs, iterations, name)
        if not x:
            continue
        colour = COLOURS[number]
        if panel.spread is not None:
            both = [entry for entry in logs if name in entry and panel.spread in entry]
            at = [entry[iterations] for entry in both]
            low, high = ([entry[name] + sign * entry[panel.spread] for entry in both] for sign in (-1, 1))
            ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) == 1 else "", markersize=4, label=label)
    if panel.logarithmic:
        ax.set_yscale("log")
    bottom, top = ax.get_ylim()
    room = _ROOM * len(panel.lines)
    ax.set_ylim(bottom, top * (top / bottom) ** room if panel.logarithmic else top + room * (top - bottom))
    ax.set_title(panel.title, fontsize=10.5)
    ax.legend(fontsize=8, frameon=False, loc="upper right")
    ax.grid(color="#e3e3e3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def plot_logs(logs: Logs, *, iterations: str = "iterations", title: str | None = None) -> "Figure":
    """Draw what `HardNegativeGenerationLoss.logs` told over training, in up to six panels.

    Args:
        logs: one dict for each logged iteration: what `logs()` returned, and the iteration under the key `iterations`.
            A panel without any of its values is left out, such as that of λ if nothing learns it.
        iterations: the key of the iterations.
        title: title of the figure.

    Returns:
        A figure with one axes per panel, at most three in a row.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: `logs` is empty, one of them has no iteration, or none has any value to draw.
    """
    matplotlib = import_matplotlib()
    lacking = [i for i, entry in enumerate(logs) if iterations not in entry]
    if lacking:
        raise ValueError(f"logs[{lacking[0]}] lacks {iterations!r}; it has {sorted(logs[lacking[0]])}")
    panels = [panel for panel in _PANELS if any(_points(logs, iterations, name)[0] for name in panel.lines)]
    if not panels:
        raise ValueError("logs has no values to draw; expected dicts as HardNegativeGenerationLoss.logs() returns them")
    rows, columns = grid(len(panels), 3)
    figure = matplotlib.figure.Figure(figsize=(0.4 + 3.3 * columns, 0.4 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        _draw_panel(ax, panel, logs, iterations)
        if number + columns >= len(panels):
            ax.set_xlabel("Training iterations", fontsize=10)
    for ax in axes[len(panels) :]:
        ax.remove()
    add_title(figure, title)
    return figure

"""The hardness of synthetic negatives, and its course over training."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..utils.batch_checks import check_finite
from ..utils.norms import length
from ..utils.validation import check_share
from .fonts import any_script
from .shared import COLOURS, DARK, add_title, grid, import_matplotlib, legend_below, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS, _HEIGHT = 4, 1.9  # panels in a row, inches of an axes
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_YLABEL = "Distance from anchor to negative,\nrelative to the positive"
_GREY = "#7f7f7f"
_ALPHA = 0.25  # of each band; inner bands lie on top of outer ones


def hardness(anchors: Tensor, positives: Tensor, synthetic: Tensor) -> Tensor:
    """Return the distance of each synthetic negative to its anchor, relative to that of the positive.

    1 means as near as the positive, 2 twice as far. Lower is harder. Distances are L2, of the embeddings as given.
    Rows whose anchor equals its positive have no such ratio and are left out.

    Args:
        anchors: anchor of each synthetic negative, finite floats of shape (S, D).
        positives: the anchors' positives, same shape.
        synthetic: the synthetic negatives, same shape.

    Returns:
        Tensor of shape (S,), shorter if rows are left out; without a gradient, in float32 or wider.

    Raises:
        TypeError: an argument is not a tensor of floats.
        ValueError: shapes are not as described, or a value is not finite.

    Examples:
        >>> import torch
        >>> anchors, positives = torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [0.0]])
        >>> ratios = hardness(anchors, positives, torch.tensor([[1.0], [8.0], [5.0]]))
        >>> ratios
        tensor([1., 4.])
        >>> torch.quantile(ratios, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()[2]
        2.5
    """
    named = {"anchors": anchors, "positives": positives, "synthetic": synthetic}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
        if value.ndim != 2 or value.shape != anchors.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; expected (S, D), the same for anchors, positives and synthetic"
            )
    for name, value in named.items():
        check_finite(value, name)
    with torch.no_grad():
        wide = torch.promote_types(anchors.dtype, torch.float32)
        near, far = (length(anchors.to(wide) - x.to(wide)) for x in (positives, synthetic))
        apart = near > 0
        return far[apart] / near[apart]


def _check_levels(levels: object) -> tuple[float, ...]:
    if not isinstance(levels, (tuple, list)):
        raise TypeError(f"levels is of type {type(levels).__name__}; expected a tuple or list")
    for i, level in enumerate(levels):
        check_share(f"levels[{i}]", level)
    pairs = zip(levels, reversed(levels), strict=True)
    rising = all(low < high for low, high in pairwise(levels))
    if len(levels) % 2 == 0 or not rising or any(abs(low + high - 1) > 1e-6 for low, high in pairs):
        raise ValueError(f"levels is {levels}; expected rising numbers, symmetric about 0.5 in their middle")
    return tuple(float(level) for level in levels)


def _table(name: str, history: object, keys: tuple[str, str], num_levels: int) -> tuple[Tensor, Tensor]:
    """Check a history, and return its iterations (T,) and quantiles (T, Q)."""
    argument = f"histories[{name!r}]"
    if not isinstance(history, Mapping):
        raise TypeError(f"{argument} is of type {type(history).__name__}; expected a mapping with the keys {keys}")
    missing = [key for key in keys if key not in history]
    if missing:
        raise ValueError(f"{argument} lacks {missing}; it has {sorted(map(str, history))}")
    x, y = (_numbers(f"{argument}[{key!r}]", history[key]) for key in keys)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{argument}[{keys[0]!r}] has shape {tuple(x.shape)}; expected (T,), at least one iteration")
    if y.shape != (len(x), num_levels):
        raise ValueError(
            f"{argument}[{keys[1]!r}] has shape {tuple(y.shape)}; expected {(len(x), num_levels)}, one row for each "
            "iteration, one column for each of levels"
        )
    if bool((x < 0).any()) or bool((x[1:] <= x[:-1]).any()):
        raise ValueError(f"{argument}[{keys[0]!r}] must rise from step to step and not be negative, got {x.tolist()}")
    if bool((y < 0).any()) or bool((y[:, 1:] < y[:, :-1]).any()):
        raise ValueError(f"{argument}[{keys[1]!r}] must hold quantiles in the order of levels, none negative")
    return x, y


def _numbers(argument: str, value: Any) -> Tensor:
    """Return the values as float64 on the CPU. Raise ValueError or TypeError unless they are a finite table."""
    try:
        if isinstance(value, Tensor):
            table = value.detach().to("cpu", torch.float64)
        else:
            table = torch.tensor(
                [x.tolist() if hasattr(x, "tolist") else x for x in value], dtype=torch.float64, device="cpu"
            )
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{argument} must hold numbers, in rows of one length: {error}") from error
    check_finite(table, argument)
    return table


def _draw_panel(ax: "Axes", x: Tensor, y: Tensor, colour: str, right: float) -> None:
    middle = y.shape[1] // 2
    for i in range(middle):
        # A band of a single iteration has no area: draw its edge instead.
        edge: dict[str, Any] = {"linewidth": 0} if len(x) > 1 else {"linewidth": 8, "clip_on": False}
        ax.fill_between(x, y[:, i], y[:, -1 - i], color=colour, alpha=_ALPHA, **edge)
    ax.plot(x, y[:, middle], color=colour, linewidth=2, marker="o" if len(x) == 1 else "", markersize=4)
    last = float(y[-1, middle])
    # Lead from a history that ended early to its value at the right edge.
    ax.plot([float(x[-1]), right], [last, last], ":", color=colour, linewidth=1, alpha=0.7)
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(f"{last:.2f}", (1, last), (4, 0), va="center", color=colour, fontsize=9, fontweight="bold", **where)
    ax.axhline(1, color=DARK, linewidth=1.2, linestyle=":")
    ax.grid(color="#e3e3e3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


@any_script
def plot_hardness(
    histories: Mapping[str, Mapping[str, Sequence[Any] | Tensor]],
    *,
    iterations: str = "iterations",
    quantiles: str = "hardness",
    levels: Sequence[float] = _LEVELS,
    title: str | None = None,
    ylabel: str = _YLABEL,
) -> "Figure":
    """Draw the hardness of each generator's negatives over training: the median, with bands of quantiles around it.

    There is one panel per generator, all with the same axes. The last median is written at the right edge. A dotted
    line marks 1: as near as the positive.

    Args:
        histories: for each generator's name, a mapping of two sequences, arrays or tensors. Under the key
            `iterations`: training iterations, shape (T,), rising, none negative. Under the key `quantiles`:
            quantiles of `hardness` at these iterations, shape (T, Q). T may differ between generators.
        iterations: the key of the iterations.
        quantiles: the key of the quantiles.
        levels: levels of the quantiles, Q rising numbers in [0, 1], symmetric about 0.5.
        title: title of the figure.
        ylabel: label of the y axis.

    Returns:
        A figure with one axes per generator, at most four in a row, and a legend below them.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: `histories` or one of them is not a mapping, or `levels` is not a sequence of numbers.
        ValueError: `histories` is empty, or one of them or `levels` is not as described.
    """
    matplotlib = import_matplotlib()
    if not isinstance(histories, Mapping):
        raise TypeError(f"histories is of type {type(histories).__name__}; expected a mapping from names to histories")
    if len(histories) == 0:
        raise ValueError("histories is empty; expected at least one generator's")
    shares = _check_levels(levels)
    tables = {name: _table(name, history, (iterations, quantiles), len(shares)) for name, history in histories.items()}
    rows, columns = grid(len(tables), _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(1.0 + 2.5 * columns, 2.5 + 2.5 * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.03)
    right = max(float(x[-1]) for x, _ in tables.values()) or 1.0
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for number, (ax, (name, (x, y))) in enumerate(zip(panels, tables.items(), strict=False)):
        _draw_panel(ax, x, y, COLOURS[number % len(COLOURS)], right)
        ax.set_title(wrap(figure, name, 2.2, 10.5), fontsize=10.5)
        if number + columns >= len(tables):
            ax.set_xlabel("Training iterations", fontsize=10)
            ax.tick_params(labelbottom=True)
    for ax in panels[len(tables) :]:
        ax.remove()
    top = max(float(y.max()) for _, y in tables.values())
    panels[0].set_xlim(0, right)
    panels[0].set_ylim(0, 1.06 * max(top, 1.0))
    label = figure.supylabel(wrap(figure, ylabel, 2.5, 10), fontsize=10, multialignment="center")
    add_title(figure, title)
    line = matplotlib.lines.Line2D
    handles = [line([], [], color=_GREY, linewidth=2, label="median")]
    for i in reversed(range(len(shares) // 2)):
        part = f"middle {100 * (shares[-1 - i] - shares[i]):g}% of the negatives"
        shade = 1 - (1 - _ALPHA) ** (i + 1)
        handles.append(matplotlib.patches.Patch(color=_GREY, alpha=shade, linewidth=0, label=part))
    handles.append(line([], [], color=DARK, linewidth=1.2, linestyle=":", label="as near as the positive"))
    legend_below(figure, handles)
    figure.draw_without_rendering()
    lacking = _HEIGHT - panels[0].bbox.height / figure.dpi
    figure.set_figheight(figure.get_figheight() + rows * lacking)
    figure.draw_without_rendering()
    heights = [edge / figure.bbox.height for ax in panels[: len(tables)] for edge in (ax.bbox.y0, ax.bbox.y1)]
    label.set_y((min(heights) + max(heights)) / 2)
    return figure

"""Gains of several methods as horizontal bars."""

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.validation import check_number
from .fonts import any_script
from .shared import COLOURS, DARK, add_title, import_matplotlib, legend_below, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _AXES_WIDTH = 6.4, 3.6  # inches, at least
_LINE, _GAP, _BAR = 0.165, 0.15, 0.2  # inches: a line of a row's name, between two names, a bar's height
_PAD = 5.0  # points between a bar and its value; twice that between the value and the edge


class _Gain(NamedTuple):
    mean: float
    half: float | None

    @property
    def side(self) -> int:
        return -1 if self.mean < 0 else 1

    @property
    def end(self) -> float:
        """End of the bar or of its interval, on the bar's side of zero."""
        return self.mean + self.side * (self.half or 0.0)


def _finite(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
    if not isfinite(value):
        raise ValueError(f"{argument} must be a finite number, got {value}")
    return float(value)


def _gain(name: object, value: object) -> _Gain:
    if not isinstance(name, str):
        raise TypeError(f"rows has a name of type {type(name).__name__}, {name!r}; expected str")
    argument = f"rows[{name!r}]"
    if not isinstance(value, (tuple, list)):
        return _Gain(_finite(argument, value), None)
    if len(value) != 2:
        raise ValueError(f"{argument} has {len(value)} values; expected (mean, half width) or the mean alone")
    gain = _Gain(*(_finite(f"{argument}[{i}]", number) for i, number in enumerate(value)))
    check_number(f"{argument}[1]", gain.half)
    return gain


def _check_groups(groups: object, rows: Mapping[str, Any]) -> None:
    if not isinstance(groups, Mapping):
        raise TypeError(f"groups is of type {type(groups).__name__}; expected a mapping from a row's name to its group")
    if set(groups) != set(rows):
        missing, unknown = [x for x in rows if x not in groups], [x for x in groups if x not in rows]
        raise ValueError(f"groups must have the same names as rows; {missing} are missing, {unknown} are unknown")
    for name, group in groups.items():
        if not isinstance(group, str):
            raise TypeError(f"groups[{name!r}] is of type {type(group).__name__}; expected str")
    if len(set(groups.values())) > len(COLOURS):
        raise ValueError(f"groups has {len(set(groups.values()))} groups; expected at most {len(COLOURS)}")


def _written(gain: _Gain, decimals: int) -> str:
    text = f"{gain.mean:+.{decimals}f}"
    if not text.strip("+-0."):
        text = text[1:]  # zero has no sign
    text = text.replace("-", "−")
    return text if gain.half is None else f"{text} ± {gain.half:.{decimals}f}"


def _fit_limits(ax: "Axes", gains: list[_Gain], notes: list[Any], reference: float | None) -> None:
    """Set limits of the x axis that leave room for the values beside the bars."""
    pad = _PAD * ax.figure.dpi / 72
    rooms = [note.get_window_extent().width + 3 * pad for note in notes]
    marks = [0.0, *([] if reference is None else [reference])]
    marks += [gain.mean + sign * (gain.half or 0.0) for gain in gains for sign in (-1, 1)]
    low, high = min(marks), max(marks)
    if low == high:
        low, high = -1.0, 1.0
    inner = low, high
    for _ in range(60):  # wider limits shrink the bars beside texts of fixed width: iterate until it fits
        unit = (high - low) / ax.bbox.width
        reaches = [gain.end + gain.side * room * unit for gain, room in zip(gains, rooms, strict=True)]
        low, high = min(inner[0] - pad * unit, *reaches), max(inner[1] + pad * unit, *reaches)
    ax.set_xlim(low, high)


@any_script
def plot_gains(
    rows: Mapping[str, float | tuple[float, float]],
    *,
    reference: float | None = None,
    reference_label: str | None = None,
    xlabel: str = "Gain in Recall@1 (percentage points)",
    groups: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw gains as horizontal bars with their values beside them, in the given order from the top.

    Long names are wrapped. The figure grows with the number of rows and the length of names.

    Args:
        rows: for each row's name, the mean gain and half the width of its interval (a 95 % interval, say), drawn as
            an error bar. Or the mean alone. Finite, in the unit of `xlabel`.
        reference: position of a dashed vertical line, in the unit of the gains; None for no line.
        reference_label: text above the line; None writes its value.
        xlabel: quantity and unit of the bars.
        groups: for each row's name, its group, at most six groups. Bars have the colour of their group, and a legend
            names the groups. Colours follow the order of groups here. None draws all bars in one colour.
        title: title of the figure.

    Returns:
        A figure with one axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: an argument, or a value in it, has the wrong type.
        ValueError: `rows` is empty, a value is not finite or a half width negative. `groups` and `rows`
            have different names. Or `reference_label` is given without a `reference`.
    """
    matplotlib = import_matplotlib()
    if not isinstance(rows, Mapping):
        raise TypeError(f"rows is of type {type(rows).__name__}; expected a mapping from a row's name to its gain")
    if len(rows) == 0:
        raise ValueError("rows is empty; expected at least one row")
    gains = [_gain(name, value) for name, value in rows.items()]
    if groups is not None:
        _check_groups(groups, rows)
    if reference is not None:
        reference = _finite("reference", reference)
    elif reference_label is not None:
        raise ValueError(f"reference_label is {reference_label!r}, but there is no reference; pass both or none")
    figure = matplotlib.figure.Figure(figsize=(_WIDTH, 1), layout="constrained")
    names = [wrap(figure, name, 2.9, 9.5) for name in rows]
    heights = [_LINE * (name.count("\n") + 1) + _GAP for name in names]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]  # inches from the top
    figure.set_figheight(sum(heights) + 4)  # preliminary; the height is set below
    ax = figure.subplots()
    ax.set_ylim(sum(heights), 0)
    members = [] if groups is None else list(dict.fromkeys(groups.values()))
    colours = [COLOURS[members.index(groups[name])] if groups is not None else COLOURS[0] for name in rows]
    ax.barh(places, [gain.mean for gain in gains], height=_BAR, color=colours)
    decimals = 1 if max(abs(gain.mean) for gain in gains) >= 1 else 2
    notes = []
    for gain, place in zip(gains, places, strict=True):
        if gain.half is not None:
            ax.errorbar(gain.mean, place, xerr=gain.half, color=DARK, elinewidth=1.1, capsize=2.5, capthick=1.1)
        look: dict[str, Any] = {"ha": "left" if gain.side > 0 else "right", "va": "center", "fontsize": 9}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # hides the reference line behind it
        note = ax.annotate(
            _written(gain, decimals), (gain.end, place), (gain.side * _PAD, 0), textcoords="offset points", **look
        )
        note.set_in_layout(False)  # limits are set below such that it lies within the axes
        notes.append(note)
    ax.axvline(0, color=DARK, linewidth=0.9)
    ax.set_yticks(places, names, fontsize=9.5)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=9)
    ax.locator_params(axis="x", nbins=7)
    ax.set_xlabel(wrap(figure, xlabel, _AXES_WIDTH, 10), fontsize=10)
    ax.grid(axis="x", color="#e3e3e3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    add_title(figure, title)
    if groups is not None:
        patches = [matplotlib.patches.Patch(color=COLOURS[i], label=member) for i, member in enumerate(members)]
        legend_below(figure, patches)
    label = None if reference is None else _draw_reference(figure, ax, reference, reference_label)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    width += max(0.0, _AXES_WIDTH - ax.bbox.width / figure.dpi)
    figure.set_size_inches(width, height + sum(heights) - ax.bbox.height / figure.dpi)
    figure.draw_without_rendering()
    _fit_limits(ax, gains, notes, reference)
    if label is not None:  # align it to stay within the axes' width
        share = (label.xy[0] - ax.get_xlim()[0]) / (ax.get_xlim()[1] - ax.get_xlim()[0])
        label.set_horizontalalignment("left" if share < 1 / 3 else "right" if share > 2 / 3 else "center")
    return figure


def _draw_reference(figure: "Figure", ax: "Axes", reference: float, label: str | None) -> Any:
    """Draw the line and return its label, which stands above the axes."""
    ax.axvline(reference, color="#666666", linewidth=1.2, linestyle=(0, (5, 3)))
    written = f"{reference:+g}".replace("-", "−") if label is None else label
    return ax.annotate(
        wrap(figure, written, 2 * _AXES_WIDTH / 3, 9),
        (reference, 1),
        (0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color="#555555",
    )

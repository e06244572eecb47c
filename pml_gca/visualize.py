"""Figures for training runs and for retrieval results.

The plots need matplotlib, which ``pip install 'pml-gca[examples]'`` brings. They are drawn on
``matplotlib.figure.Figure`` objects, without pyplot: no display is needed and no global state is changed.
Save one with ``figure.savefig("curves.png", dpi=200)``.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Sequence[float]]

SAME_CLASS = "#1b9e4b"
OTHER_CLASS = "#d62728"
_DASHES = (0, (3.5, 1.2))
_QUERY_FRAME = "#404040"
_GREY = "#555555"
# Okabe and Ito's colours, told apart by colour-blind readers, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLES = ("-", "--", ":", "-.")


def _matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
        import matplotlib.lines
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pml-gca[examples]'") from error
    return matplotlib


def _indices(name: str, value: Any, size: int, ndim: int) -> torch.Tensor:
    """``value`` on the CPU if it is a non-empty integer tensor of indices into ``size`` items."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is of type {type(value).__name__}; expected a tensor")
    if value.dtype not in (torch.int64, torch.int32) or value.ndim != ndim:
        found = f"{value.dtype}, shape {tuple(value.shape)}"
        raise ValueError(f"{name} is {found}; expected int64 or int32 in {ndim} dimension(s)")
    if value.numel() == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(value.shape)}; expected at least one index")
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} holds values from {low} to {high}; expected indices from 0 to {size - 1}")
    return value.detach().cpu().long()


def nearest_neighbours(embeddings: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest embeddings of each query, by cosine similarity, the query itself left out.

    The search is exact: inner products of L2-normalised embeddings with all others, computed for all
    queries at once (Q x N numbers in memory). Of equally near embeddings, the lower index comes first.

    Args:
        embeddings: finite floats of shape (N, D).
        queries: indices into ``embeddings``, shape (Q,).
        k: number of neighbours, from 1 to N - 1.

    Returns:
        int64 tensor of shape (Q, k) on the device of ``embeddings``: indices, nearest first.

    Raises:
        ValueError: an argument is not as described.
    """
    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError("embeddings must be a 2-dimensional tensor of floats, (N, D)")
    if not bool(embeddings.isfinite().all()):
        raise ValueError("embeddings holds values that are not finite")
    chosen = _indices("queries", queries, len(embeddings), 1).to(embeddings.device)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(embeddings):
        raise ValueError(f"k is {k!r}; expected an int from 1 to N - 1 = {len(embeddings) - 1}")
    # Half precision is too coarse to rank by.
    wide = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
    unit = torch.nn.functional.normalize(wide, dim=1)
    similarity = unit[chosen] @ unit.T
    similarity[torch.arange(len(chosen), device=chosen.device), chosen] = -torch.inf
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _table(name: str, seeds: Run | Sequence[Run], keys: Sequence[str]) -> torch.Tensor:
    """The values of a run, shape (seeds, keys, evaluations)."""
    runs = [seeds] if isinstance(seeds, Mapping) else list(seeds)
    if not runs:
        raise ValueError(f"runs[{name!r}] is empty; expected a mapping or several, one per seed")
    rows = []
    for run in runs:
        missing = [key for key in keys if key not in run]
        if missing:
            raise ValueError(f"runs[{name!r}] lacks {missing}; it has {sorted(run)}")
        rows.append([torch.tensor([float(x) for x in run[key]], dtype=torch.float64) for key in keys])
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
    """The positions, none above ``ceiling``, in the same order, pushed ``gap`` apart and hardly further."""
    spread = list(positions)
    order = sorted(range(len(spread)), key=spread.__getitem__)
    for _ in range(500):  # enough to converge for as many lines as a plot can hold
        spread[order[-1]] = min(spread[order[-1]], ceiling)
        for lower, upper in pairwise(order):
            push = max(0.0, gap - (spread[upper] - spread[lower])) / 2
            spread[lower] -= push
            spread[upper] += push
    return spread


def _draw_panel(ax: "Axes", tables: Mapping[str, torch.Tensor], row: int, xlabel: str) -> list[Any]:
    """Draw all runs over the table's given row; returns the labels of the last values, one per run."""
    right = max(float(table[:, row].mean(0).max()) for table in tables.values()) * 1.02
    right = right if right > 0 else 1.0
    notes = []
    for number, (name, table) in enumerate(tables.items()):
        name = name if len(table) == 1 else f"{name} (mean ± s.d. of {len(table)} seeds)"
        colour = _COLOURS[number % len(_COLOURS)]
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        x, y = table[:, row].mean(0).tolist(), table[:, -1].mean(0)
        last = float(y[-1])
        if len(table) > 1:
            deviation = table[:, -1].std(0)
            low, high = (y - deviation).tolist(), (y + deviation).tolist()
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        marks = sorted({*range(0, len(x), max(1, len(x) // 20)), len(x) - 1})
        marker = _MARKERS[number % len(_MARKERS)]
        (line,) = ax.plot(x, y.tolist(), style, color=colour, linewidth=1.8, label=name)
        line.set(marker=marker, markersize=4, markevery=marks)
        # Leads from a run that ended early to its value at the right edge.
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

    Each run is one line, its last value written at the right edge. A run with several seeds is drawn as the
    mean with a band of one standard deviation (n - 1 in the denominator) to either side; in the time panel
    its points lie at the mean time of the seeds.

    Args:
        runs: for each run's name, a mapping with sequences of one length under the keys ``iterations``,
            ``seconds`` and ``metric``; or a sequence of such mappings, one per seed, evaluated at the same
            iterations. Iterations and seconds count from the start of training and must not be negative.
        metric: the key of the metric.
        metric_label: its name on the axis.
        percent: the metric lies in [0, 1] and is drawn in percent; otherwise it is drawn as it is.
        iterations: the key of the iterations.
        seconds: the key of the seconds; None draws no time panel.
        title: title of the figure.

    Returns:
        A figure with two axes (one without ``seconds``) and a legend below them.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: ``runs`` is empty or a run is not as described.
    """
    matplotlib = _matplotlib()
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
    handles = panels[0].get_legend_handles_labels()[0]
    fitting = int(56 * len(xlabels) / (max(len(handle.get_label()) for handle in handles) + 6))
    columns = max(1, min(len(handles), fitting))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    # Lay the figure out to learn the height of a label in data coordinates, then push labels apart.
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    for ax, labels in zip(panels, notes, strict=True):
        ceiling = float(ax.bbox.y1) * points - 3
        heights = [float(ax.transData.transform(label.xy)[1]) * points for label in labels]
        for label, height, wanted in zip(labels, heights, _spread(heights, 11.5, ceiling), strict=True):
            label.set_position((5, wanted - height))
    return figure


def plot_retrieval(
    images: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    neighbours: Mapping[str, torch.Tensor],
    *,
    top: int = 4,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Show queries (one per row) and their nearest images, for one model or several side by side.

    A retrieved image has a solid green frame if it is of the query's class, else a dashed red one.

    Args:
        images: floats in [0, 1] of shape (N, C, H, W), C = 1 (grey) or 3 (RGB); undo any normalisation.
        labels: integers of shape (N,).
        queries: indices into ``images``, shape (Q,).
        neighbours: for each model's name, indices into ``images`` of shape (Q, at least ``top``), nearest
            first, as ``nearest_neighbours`` returns them. The name is the title of the model's block.
        top: how many neighbours to show.
        class_names: names of the labels, written beside the queries; None writes "class 7".
        title: title of the figure.

    Returns:
        A figure with Q * (1 + models * ``top``) axes, row by row, the query first.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an argument is not as described, or a query's label has no name.
    """
    matplotlib = _matplotlib()
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError("images must be a tensor of shape (N, C, H, W) with C = 1 or 3")
    if not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"images is {images.dtype}, {tuple(images.shape)}; expected floats, not empty")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top is {top!r}; expected a positive int")
    size = len(images)
    if not isinstance(labels, torch.Tensor) or labels.shape != (size,) or labels.is_floating_point():
        raise ValueError(f"labels must be a tensor of integers of shape ({size},), one for each of images")
    chosen = _indices("queries", queries, size, 1)
    if not isinstance(neighbours, Mapping) or len(neighbours) == 0:
        raise ValueError("neighbours must map at least one model's name to indices")
    found = {}
    for name, value in neighbours.items():
        index = _indices(f"neighbours[{name!r}]", value, size, 2)
        if len(index) != len(chosen) or index.shape[1] < top:
            raise ValueError(
                f"neighbours[{name!r}] has shape {tuple(index.shape)}; expected {len(chosen)} rows, one for "
                f"each of queries, and at least top = {top} columns"
            )
        found[name] = index[:, :top]
    shown = torch.cat([chosen[:, None], *found.values()], dim=1)  # (Q, 1 + models * top)
    low, high = (float(x) for x in images[shown.flatten().to(images.device)].aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for nan
        raise ValueError(f"images holds values from {low:.3g} to {high:.3g}; expected [0, 1]")
    names = []
    for label in labels[chosen.to(labels.device)].tolist():
        try:
            names.append(f"class {label}" if class_names is None else class_names[label])
        except (KeyError, IndexError):
            raise ValueError(f"class_names has no name for label {label}, which a query has") from None
    return _draw_retrieval(matplotlib, images, labels.cpu(), shown, list(found), names, top, title)


def _draw_retrieval(
    matplotlib: ModuleType,
    images: torch.Tensor,
    labels: torch.Tensor,
    shown: torch.Tensor,
    models: Sequence[str],
    names: Sequence[str],
    top: int,
    title: str | None,
) -> "Figure":
    # Lengths are in inches: cells keep the images' shape and text its place, whatever their number.
    width, gap, block_gap, left, right, bottom = 1.0, 0.1, 0.42, 1.2, 0.2, 0.45
    height = width * min(max(images.shape[2] / images.shape[3], 0.25), 4.0)
    offsets = [left]
    for column in range(shown.shape[1] - 1):
        offsets.append(offsets[-1] + width + (block_gap if column % top == 0 else gap))
    total_width = offsets[-1] + width + right
    block = top * width + (top - 1) * gap
    headings = [textwrap.fill(model, max(8, int(block * 10))) for model in models]
    heading_height = 0.2 * max(heading.count("\n") + 1 for heading in headings) + 0.12
    head = (0.42 if title else 0.1) + heading_height + 0.25
    total_height = head + len(shown) * (height + gap) - gap + bottom
    figure = matplotlib.figure.Figure(figsize=(total_width, total_height))

    def text(x: float, y: float, string: str, **look: Any) -> None:
        figure.text(x / total_width, 1 - y / total_height, string, **look)

    if title:
        text(total_width / 2, 0.12, title, ha="center", va="top", fontsize=13)
    text(left + width / 2, head - 0.06, "query", ha="center", va="bottom", fontsize=9, color=_GREY)
    for number, heading in enumerate(headings):
        start = offsets[1 + number * top]
        middle = start + block / 2
        text(middle, head - 0.3, heading, ha="center", va="bottom", fontsize=11, fontweight="bold")
        for rank in range(top):
            x = offsets[1 + number * top + rank] + width / 2
            text(x, head - 0.06, f"{rank + 1}", ha="center", va="bottom", fontsize=9, color=_GREY)
    for row, indices in enumerate(shown.tolist()):
        y = head + row * (height + gap)
        name = textwrap.fill(names[row], 14)
        text(left - 0.1, y + height / 2, name, ha="right", va="center", fontsize=9)
        for column, index in enumerate(indices):
            place = (
                offsets[column] / total_width,
                1 - (y + height) / total_height,
                width / total_width,
                height / total_height,
            )
            ax = figure.add_axes(place)
            picture = images[index].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            ax.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            same = bool(labels[index] == labels[indices[0]])
            colour = _QUERY_FRAME if column == 0 else SAME_CLASS if same else OTHER_CLASS
            for spine in ax.spines.values():
                spine.set(edgecolor=colour, linewidth=1.2 if column == 0 else 3.0)
                if column > 0 and not same:
                    spine.set(linestyle=_DASHES, capstyle="butt")
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=SAME_CLASS, linewidth=3, label="same class as the query"),
        line([], [], color=OTHER_CLASS, linewidth=3, linestyle=_DASHES, label="another class"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=9, borderaxespad=0.3)
    return figure

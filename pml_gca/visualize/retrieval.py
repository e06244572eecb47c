"""Queries and the images that models retrieve for them."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ..utils.batch_checks import check_finite
from ..utils.norms import unit
from ..utils.validation import count_of
from .fonts import any_script
from .shared import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME_CLASS = "#1b9e4b"
OTHER_CLASS = "#d62728"
_DASHES = (0, (3.5, 1.2))
_QUERY_FRAME = "#404040"
_GREY = "#555555"


def indices(name: str, value: Any, size: int, ndim: int) -> torch.Tensor:
    """Return `value` on the CPU if it holds indices into `size` items, at least one. Else raise ValueError."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is of type {type(value).__name__}; expected a tensor")
    if value.dtype not in (torch.int64, torch.int32) or value.ndim != ndim:
        found = f"{value.dtype}, shape {tuple(value.shape)}"
        raise ValueError(f"{name} is {found}; expected int64 or int32 in {count_of(ndim, 'dimension')}")
    if value.numel() == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(value.shape)}; expected at least one index")
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} holds values from {low} to {high}; expected indices from 0 to {size - 1}")
    return value.detach().cpu().long()


def nearest_neighbours(embeddings: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k nearest embeddings of each query by cosine similarity, without the query itself.

    The search is exact. It computes the similarities of all queries to all embeddings at once, Q x N numbers in
    memory. Among equally near embeddings, the lower index comes first.

    Args:
        embeddings: finite floats of shape (N, D).
        queries: indices into `embeddings`, shape (Q,).
        k: number of neighbours, from 1 to N - 1.

    Returns:
        int64 indices, nearest first, shape (Q, k), on the device of `embeddings`.

    Raises:
        ValueError: an argument is not as described.
    """
    if not isinstance(embeddings, torch.Tensor) or embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError("embeddings must be a 2-dimensional tensor of floats, (N, D)")
    check_finite(embeddings, "embeddings", largest=math.inf)
    chosen = indices("queries", queries, len(embeddings), 1).to(embeddings.device)
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k < len(embeddings):
        raise ValueError(f"k is {k!r}; expected an int from 1 to N - 1 = {len(embeddings) - 1}")
    # Half precision is too coarse for a ranking.
    wide = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
    directions, _ = unit(wide)
    similarity = directions[chosen] @ directions.T
    similarity[torch.arange(len(chosen), device=chosen.device), chosen] = -torch.inf
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]


@any_script
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
    """Show queries, one per row, and their nearest images, for one model or several side by side.

    The frame of a retrieved image is solid green if it is of the query's class, else dashed red.

    Args:
        images: floats in [0, 1] of shape (N, C, H, W), C = 1 (grey) or 3 (RGB); undo any normalisation.
        labels: integers of shape (N,).
        queries: indices into `images`, shape (Q,).
        neighbours: for each model's name, indices into `images` of shape (Q, at least `top`), nearest
            first, as `nearest_neighbours` returns them. The name is the title of the model's block.
        top: number of neighbours to show.
        class_names: names of the labels, written beside the queries; None writes "class 7".
        title: title of the figure.

    Returns:
        A figure with Q * (1 + models * `top`) axes, row by row, each row with its query first.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an argument is not as described, or a query's label has no name.
    """
    matplotlib = import_matplotlib()
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError("images must be a tensor of shape (N, C, H, W) with C = 1 or 3")
    if not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"images is {images.dtype}, {tuple(images.shape)}; expected floats, not empty")
    if isinstance(top, bool) or not isinstance(top, Integral) or top < 1:
        raise ValueError(f"top is {top!r}; expected a positive int")
    size = len(images)
    if not isinstance(labels, torch.Tensor) or labels.shape != (size,) or labels.is_floating_point():
        raise ValueError(f"labels must be a tensor of integers of shape ({size},), one for each of images")
    chosen = indices("queries", queries, size, 1)
    if not isinstance(neighbours, Mapping) or len(neighbours) == 0:
        raise ValueError("neighbours must map at least one model's name to indices")
    found = {}
    for name, value in neighbours.items():
        index = indices(f"neighbours[{name!r}]", value, size, 2)
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
            raise ValueError(f"class_names has no name for label {label} of a query") from None
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
    # Lengths are in inches: cells keep the images' shape, and text keeps its place, for any number of images.
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

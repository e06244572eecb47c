"""Maps of embeddings together with their synthetic negatives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..utils.batch_checks import check_finite, check_labels
from ..utils.validation import check_number, check_positive_int, count_of
from .fonts import any_script
from .shared import COLOURS, DARK, MARKERS, add_title, grid, import_matplotlib, legend_below, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_REAL, _SYNTHETIC, _ANCHOR = 4.8, 4.6, 8.5  # points: sizes of markers
_SCALES = (1.05, 0.95, 1.2, 0.95, 1.2, 1.2)  # of MARKERS, to give them about the same area
_GREY = "#7f7f7f"


@dataclass(frozen=True, eq=False)
class EmbeddingPanel:
    """The data of one panel of `plot_synthetic_negatives`.

    Attributes:
        embeddings: finite floats of shape (n, D), n >= 4 and D >= 2, none of length 0.
        labels: integers of shape (n,).
        synthetic: synthetic negatives, finite floats of shape (m, D), none of length 0; None for none.
        synthetic_labels: integers of shape (m,), all among `labels`, as the generators return them. They name the
            class of the real samples that a synthetic negative is made of, not that of its anchor. None for none.
    """

    embeddings: Tensor
    labels: Tensor
    synthetic: Tensor | None = None
    synthetic_labels: Tensor | None = None


def _check_vectors(name: str, value: object, dim: int | None) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.ndim != 2 or (value.shape[1] != dim if dim is not None else len(value) < 4 or value.shape[1] < 2):
        expected = "(n, D) with n >= 4 and D >= 2" if dim is None else f"(m, {dim}), D as in embeddings"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}")
    check_finite(value, name)
    zeros = int((value == 0).all(dim=1).sum())
    if zeros:
        raise ValueError(f"{name} has {zeros} rows of length 0; expected rows with a direction")
    return value.detach().to("cpu", torch.float64)


def _checked(name: str, panel: object) -> EmbeddingPanel:
    """Return the panel on the CPU in float64, with empty tensors if it has no synthetic negatives."""
    if not isinstance(panel, EmbeddingPanel):
        raise TypeError(f"{name} is of type {type(panel).__name__}; expected an EmbeddingPanel")
    embeddings = _check_vectors(f"{name}.embeddings", panel.embeddings, None)
    check_labels(panel.labels, len(embeddings), f"{name}.labels")
    if (panel.synthetic is None) != (panel.synthetic_labels is None):
        lone = "synthetic" if panel.synthetic_labels is None else "synthetic_labels"
        raise ValueError(f"{name} has {lone} alone; expected both synthetic and synthetic_labels, or none")
    labels = panel.labels.detach().cpu().long()
    if panel.synthetic is None:
        return EmbeddingPanel(embeddings, labels, embeddings[:0], labels[:0])
    synthetic = _check_vectors(f"{name}.synthetic", panel.synthetic, embeddings.shape[1])
    check_labels(panel.synthetic_labels, len(synthetic), f"{name}.synthetic_labels", "synthetic")
    made_of = torch.as_tensor(panel.synthetic_labels, device="cpu").detach().long()
    unknown = sorted(set(made_of.tolist()) - set(labels.tolist()))
    if unknown:
        raise ValueError(f"{name}.synthetic_labels has {unknown}; expected classes among labels")
    return EmbeddingPanel(embeddings, labels, synthetic, made_of)


def _classes(panels: Mapping[str, EmbeddingPanel], anchor_class: int | None) -> list[int]:
    """Return the classes that all panels show, ascending."""
    classes: list[int] = []
    for title, panel in panels.items():
        found = panel.labels.unique().tolist()
        if not 2 <= len(found) <= len(COLOURS):
            raise ValueError(
                f"panels[{title!r}].labels has {count_of(len(found), 'class', 'classes')}; expected 2 to {len(COLOURS)}"
            )
        if classes and found != classes:
            raise ValueError(f"panels[{title!r}].labels has the classes {found}; expected {classes}, as in the first")
        classes = found
    if anchor_class is not None:
        if isinstance(anchor_class, bool) or not isinstance(anchor_class, Integral):
            raise TypeError(f"anchor_class must be an integer, got {type(anchor_class).__name__}")
        if anchor_class not in classes:
            raise ValueError(f"anchor_class is {anchor_class}; expected one of the classes {classes}")
    return classes


def _names(classes: Sequence[int], class_names: Mapping[int, str] | Sequence[str] | None) -> list[str]:
    if class_names is None:
        return [f"class {label}" for label in classes]
    if isinstance(class_names, str) or not isinstance(class_names, (Mapping, Sequence)):
        raise TypeError(f"class_names is of type {type(class_names).__name__}; expected a mapping or a sequence")
    known = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    missing = [label for label in classes if label not in known]
    if missing:
        raise ValueError(f"class_names has no names for the labels {missing} in panels")
    return [str(known[label]) for label in classes]


def _embed(name: str, panel: EmbeddingPanel, perplexity: float, seed: int) -> Tensor:
    """Return the places of the real, then the synthetic embeddings in the map, shape (n + m, 2)."""
    unit = torch.nn.functional.normalize(
        torch.cat([panel.embeddings, torch.as_tensor(panel.synthetic, device="cpu")]), dim=1
    )
    if float((unit - unit[0]).abs().max()) < 1e-7:
        raise ValueError(f"{name} has embeddings of one direction only; expected several directions")
    tsne = import_module("sklearn.manifold").TSNE(
        init="pca",
        learning_rate="auto",
        perplexity=max(1.0, min(float(perplexity), (len(unit) - 1) / 3)),
        random_state=seed,
    )
    places = torch.from_numpy(tsne.fit_transform(unit.numpy())).double()
    return places - (places.amin(0) + places.amax(0)) / 2


def _look(number: int, is_anchor: bool, synthetic: bool) -> dict[str, Any]:
    """Return the style of a class's markers, for `Axes.plot` and for the legend."""
    colour = COLOURS[number]
    size = _ANCHOR if is_anchor else _SCALES[number] * (_SYNTHETIC if synthetic else _REAL)
    look = {"linestyle": "", "marker": "*" if is_anchor else MARKERS[number], "markersize": size}
    if synthetic:
        return {**look, "markerfacecolor": (colour, 0.12), "markeredgecolor": (colour, 0.85), "markeredgewidth": 0.9}
    edge = DARK if is_anchor else "white"
    return {**look, "markerfacecolor": colour, "markeredgecolor": edge, "markeredgewidth": 0.7 if is_anchor else 0.5}


def _draw_panel(
    ax: "Axes", panel: EmbeddingPanel, places: Tensor, classes: Sequence[int], anchor_class: int | None
) -> None:
    real, synthetic = places[: len(panel.labels)], places[len(panel.labels) :]
    for points, labels, hollow in ((real, panel.labels, False), (synthetic, panel.synthetic_labels, True)):
        for number, label in enumerate(classes):
            chosen = points[labels == label]
            if len(chosen):
                ax.plot(chosen[:, 0], chosen[:, 1], **_look(number, label == anchor_class, hollow))
    half = 1.07 * max(float(places.abs().max()), 1e-6)
    ax.set(xticks=[], yticks=[], xlim=(-half, half), ylim=(-half, half))
    for spine in ax.spines.values():
        spine.set(edgecolor="#b0b0b0", linewidth=0.8)


@any_script
def plot_synthetic_negatives(
    panels: Mapping[str, EmbeddingPanel],
    *,
    anchor_class: int | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    title: str | None = None,
) -> "Figure":
    """Map the embeddings of a few classes and their synthetic negatives to the plane, for several methods.

    Each panel is a separate t-SNE of its L2-normalised real and synthetic embeddings. Places and distances cannot be
    compared between panels. Markers are filled for real samples and hollow for synthetic negatives. Colour and shape
    show the class; for a synthetic negative, that of the real samples it is made of.

    Args:
        panels: the data of each panel by its title; all with the same 2 to 6 classes.
        anchor_class: the class of the anchors, drawn as stars; None draws all classes alike.
        class_names: names of the labels; None writes "class 7".
        perplexity: t-SNE's perplexity, at least 1; lowered to a third of the number of points if these are few.
        seed: t-SNE's seed, 0 to 2^32 - 1. The same seed gives the same map. Another one hardly changes it, because
            t-SNE starts from the two principal components.
        title: title of the figure.

    Returns:
        A figure with one square axes per panel, at most three in a row, and a legend below them.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: an argument, or a tensor of a panel, has the wrong type.
        ValueError: `panels` is empty, a panel is not as described, `anchor_class` is not among the classes, or a
            class has no name.
    """
    matplotlib = import_matplotlib()
    if not isinstance(panels, Mapping):
        raise TypeError(f"panels is of type {type(panels).__name__}; expected a mapping from titles to EmbeddingPanel")
    if len(panels) == 0:
        raise ValueError("panels is empty; expected at least one panel")
    check_number("perplexity", perplexity, minimum=1.0)
    check_positive_int("seed", seed, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"seed must be at most 2^32 - 1, as t-SNE takes it, got {seed}")
    checked = {name: _checked(f"panels[{name!r}]", panel) for name, panel in panels.items()}
    classes = _classes(checked, anchor_class)
    names = _names(classes, class_names)
    rows, columns = grid(len(checked), _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(3.1 * columns + 0.2, 3.35 * rows + 1.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    for number, (name, panel) in enumerate(checked.items()):
        ax = figure.add_subplot(rows, columns, number + 1)
        _draw_panel(ax, panel, _embed(f"panels[{name!r}]", panel, perplexity, seed), classes, anchor_class)
        ax.set_title(wrap(figure, name, 2.9, 10.5), fontsize=10.5)
    add_title(figure, title)
    line = matplotlib.lines.Line2D
    handles = []
    for number, (label, name) in enumerate(zip(classes, names, strict=True)):
        is_anchor = label == anchor_class
        look = _look(number, is_anchor, False)
        handles.append(line([], [], label=f"{name} (anchors)" if is_anchor else name, **look))
    hollow = {**_look(0, False, True), "markerfacecolor": (_GREY, 0.12), "markeredgecolor": _GREY}
    if any(len(torch.as_tensor(panel.synthetic, device="cpu")) for panel in checked.values()):
        handles.append(line([], [], label="synthetic negatives", **hollow))
    legend_below(figure, handles)
    figure.draw_without_rendering()
    box = figure.axes[0].bbox  # make it square: both directions then have the same scale
    figure.set_figheight(figure.get_figheight() + rows * (box.width - box.height) / figure.dpi)
    return figure

import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import TSNE

from pml_gca.visualize import EmbeddingPanel, plot_synthetic_negatives

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure


def panel(seed=0, classes=(3, 5, 9), per_class=6, dim=4, made=5, dtype=torch.float32):
    """Classes in clusters, and `made` synthetic negatives of each class but the first."""
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.eye(dim)[torch.arange(len(classes)) % dim]
    which = torch.arange(len(classes)).repeat_interleave(per_class)
    real = centres[which] + 0.3 * torch.randn(len(which), dim, generator=g)
    labels = torch.tensor(classes)[which]
    if not made:
        return EmbeddingPanel(real.to(dtype), labels)
    new = torch.arange(1, len(classes)).repeat_interleave(made)
    synthetic = (centres[new] + centres[0]) / 2 + 0.3 * torch.randn(len(new), dim, generator=g)
    return EmbeddingPanel(real.to(dtype), labels, synthetic.to(dtype), torch.tensor(classes)[new])


def places(figure):
    return [line.get_xydata().tolist() for ax in figure.axes for line in ax.lines]


def hollow(line):
    return to_rgba(line.get_markerfacecolor())[3] < 0.5


def test_map_points_colours_and_markers(tmp_path):
    panels = {"alone": panel(made=0), "HDML": panel(1), "GCA-HNG": panel(2)}
    names = {3: "Indigo Bunting", 5: "Cardinal", 9: "Albatross"}
    figure = plot_synthetic_negatives(panels, class_names=names, title="Negatives")
    assert isinstance(figure, Figure)
    assert [ax.get_title() for ax in figure.axes] == list(panels)
    looks = set()
    for ax, shown in zip(figure.axes, panels.values(), strict=True):
        real, made = [line for line in ax.lines if not hollow(line)], [line for line in ax.lines if hollow(line)]
        assert [len(line.get_xdata()) for line in real] == [6, 6, 6]
        assert [len(line.get_xdata()) for line in made] == ([] if shown.synthetic is None else [5, 5])
        assert len({line.get_marker() for line in real}) == len({line.get_color() for line in real}) == 3
        for line, same in zip(made, real[1:], strict=False):  # the first class has no synthetic negatives
            assert line.get_marker() == same.get_marker()
            assert to_rgba(line.get_markeredgecolor())[:3] == to_rgba(same.get_markerfacecolor())[:3]
        assert all(line.get_zorder() <= after.get_zorder() for line in real for after in made)
        looks.add(tuple((line.get_marker(), line.get_markerfacecolor()) for line in real))
        low, high = ax.get_xlim()
        assert (low, high) == ax.get_ylim()
        assert all(low < value < high for line in ax.lines for value in line.get_xydata().flatten())
    assert len(looks) == 1  # one class, one look, in all panels
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names.values(), "synthetic negatives"]
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert legend.get_window_extent().y1 <= min(ax.get_tightbbox().y0 for ax in figure.axes) + 1


def test_map_keeps_clusters_together_and_depends_only_on_angles():
    shown = panel(made=0, per_class=10)
    shown = EmbeddingPanel(shown.embeddings[4:], shown.labels[4:])
    figure = plot_synthetic_negatives({"a": shown})
    clusters = [torch.tensor(line.get_xydata()) for line in figure.axes[0].lines]
    assert [len(own) for own in clusters] == [6, 10, 10]
    for own in clusters:
        for other in clusters:
            if own is not other:
                assert torch.cdist(own, own).max() < torch.cdist(own.mean(0)[None], other).min()
    lengths = 0.1 + torch.arange(26.0)[:, None]
    scaled = replace(shown, embeddings=(shown.embeddings.double() * lengths).double())
    exact = replace(shown, embeddings=shown.embeddings.double())
    assert places(plot_synthetic_negatives({"a": scaled})) == [
        pytest.approx(xy, abs=0.5) for xy in map(torch.tensor, places(plot_synthetic_negatives({"a": exact})))
    ]


def test_map_anchor_class_has_stars():
    plain = plot_synthetic_negatives({"a": panel()})
    assert all(line.get_marker() != "*" for line in plain.axes[0].lines)
    figure = plot_synthetic_negatives({"a": panel()}, anchor_class=5)
    stars = [line.get_marker() == "*" for line in figure.axes[0].lines]
    assert stars == [False, True, False, True, False]  # real 3, 5, 9, synthetic 5, 9
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["class 3", "class 5 (anchors)", "class 9", "synthetic negatives"]


def test_map_same_seed_same_map_and_inputs_kept():
    shown = panel()
    kept = [getattr(shown, name).clone() for name in ("embeddings", "labels", "synthetic", "synthetic_labels")]
    state = torch.random.get_rng_state()
    first, again = (places(plot_synthetic_negatives({"a": shown}, seed=1)) for _ in range(2))
    assert first == again
    after = [shown.embeddings, shown.labels, shown.synthetic, shown.synthetic_labels]
    assert all(torch.equal(x, y) for x, y in zip(kept, after, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(FrozenInstanceError):
        shown.labels = kept[1]


@pytest.mark.parametrize(("wanted", "used"), [(2.5, 2.5), (50, 9)])  # 28 points
def test_map_settings_of_tsne(wanted, used, monkeypatch):
    given = []

    def spy(**kwargs):
        given.append(kwargs)
        return TSNE(**kwargs)

    monkeypatch.setattr("sklearn.manifold.TSNE", spy)
    plot_synthetic_negatives({"a": panel()}, perplexity=wanted, seed=7)
    (look,) = given
    assert (look["random_state"], look["init"], look["perplexity"]) == (7, "pca", used)


@settings(max_examples=3)
@given(
    seed=st.integers(0, 100),
    classes=st.integers(2, 6),
    per_class=st.integers(2, 4),
    dim=st.integers(2, 5),
    made=st.integers(0, 2),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_map_few_points_of_any_kind(seed, classes, per_class, dim, made, dtype):
    shown = panel(seed, range(classes), per_class, dim, made, dtype)
    if shown.synthetic is not None:
        shown.synthetic.requires_grad_(True)
    figure = plot_synthetic_negatives({"a": shown}, perplexity=50)
    points = [line.get_xydata() for line in figure.axes[0].lines]
    assert sum(map(len, points)) == classes * per_class + (classes - 1) * made
    assert all(torch.as_tensor(xy).isfinite().all() for xy in points)


@pytest.mark.parametrize("count", [1, 4])
def test_map_texts_stay_inside_and_axes_are_square(count):
    names = ["Black-footed Albatross of the north", "Indigo Bunting"]
    shown = panel(classes=(0, 1), per_class=2, made=1)
    title = "a rather long title of a panel, which is wrapped, number"
    figure = plot_synthetic_negatives(
        {f"{title} {i}": shown for i in range(count)}, class_names=names, title="Title " * 9
    )
    assert len(figure.axes) == count
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert ax.bbox.width == pytest.approx(ax.bbox.height, rel=0.02)
    columns = {round(ax.bbox.x0) for ax in figure.axes}
    assert len(columns) == {1: 1, 4: 2}[count]
    texts = [figure._suptitle, *(ax.title for ax in figure.axes), *figure.legends[0].get_texts()]
    boxes = [text.get_window_extent() for text in texts] + [ax.get_window_extent() for ax in figure.axes]
    for i, a in enumerate(boxes):
        assert a.x0 >= 0
        assert a.y0 >= 0
        assert a.x1 <= figure.bbox.x1
        assert a.y1 <= figure.bbox.y1
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])


GOOD = panel()
NAMED = r"^panels\['a'\]"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"embeddings": [[1.0]]}, TypeError, r"\.embeddings must be a torch.Tensor, got list"),
        ({"embeddings": torch.ones(18, 4).long()}, TypeError, r"\.embeddings must be floating point, got torch.int64"),
        ({"embeddings": torch.ones(18)}, ValueError, r"\.embeddings has shape \(18,\); expected \(n, D\)"),
        ({"embeddings": torch.ones(3, 4)}, ValueError, r"\.embeddings has shape \(3, 4\); expected .*n >= 4"),
        ({"embeddings": torch.ones(18, 1)}, ValueError, r"\.embeddings has shape \(18, 1\); expected .*D >= 2"),
        ({"embeddings": torch.full((18, 4), torch.inf)}, ValueError, r"\.embeddings must be finite, got 0 NaN and 72"),
        ({"embeddings": torch.zeros(18, 4)}, ValueError, r"\.embeddings has 18 rows of length 0"),
        ({"labels": GOOD.labels[:-1]}, ValueError, r"\.labels must be as many as embeddings: expected 18, got 17"),
        ({"labels": GOOD.labels.float()}, TypeError, r"\.labels must be integers, got torch.float32"),
        (
            {"labels": torch.zeros(18).long()},
            ValueError,
            r"\.synthetic_labels has \[5, 9\]; expected classes among labels",
        ),
        ({"labels": torch.arange(18)}, ValueError, r"\.labels has 18 classes; expected 2 to 6"),
        ({"synthetic": None}, ValueError, " has synthetic_labels alone; expected both"),
        ({"synthetic_labels": None}, ValueError, " has synthetic alone; expected both"),
        ({"synthetic": torch.ones(10, 5)}, ValueError, r"\.synthetic has shape \(10, 5\); expected \(m, 4\)"),
        ({"synthetic": torch.full((10, 4), torch.nan)}, ValueError, r"\.synthetic must be finite, got 40 NaN"),
        ({"synthetic": torch.ones(9, 4)}, ValueError, r"\.synthetic_labels must be as many as synthetic: expected 9"),
        ({"synthetic_labels": torch.full((10,), 4)}, ValueError, r"\.synthetic_labels has \[4\]; expected classes"),
        ({"embeddings": torch.ones(18, 4), "synthetic": torch.ones(10, 4)}, ValueError, " has embeddings of one direc"),
    ],
)
def test_map_bad_panel(change, error, match):
    with pytest.raises(error, match=NAMED + match):
        plot_synthetic_negatives({"a": replace(GOOD, **change)})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"panels": [GOOD]}, TypeError, "^panels is of type list; expected a mapping"),
        ({"panels": {}}, ValueError, "^panels is empty"),
        ({"panels": {"a": GOOD.embeddings}}, TypeError, NAMED + " is of type Tensor; expected an EmbeddingPanel"),
        ({"panels": {"b": GOOD, "a": panel(classes=(3, 5))}}, ValueError, NAMED + r"\.labels has the classes \[3, 5\]"),
        ({"panels": {"a": panel(classes=(3,), made=0)}}, ValueError, NAMED + r"\.labels has 1 class;"),
        ({"anchor_class": 4}, ValueError, r"^anchor_class is 4; expected one of the classes \[3, 5, 9\]"),
        ({"anchor_class": 3.0}, TypeError, "^anchor_class must be an integer, got float"),
        ({"class_names": {3: "a", 5: "b"}}, ValueError, r"^class_names has no names for the labels \[9\]"),
        ({"class_names": ["a"] * 9}, ValueError, r"^class_names has no names for the labels \[9\]"),
        ({"class_names": "abc"}, TypeError, "^class_names is of type str"),
        ({"perplexity": 0.5}, ValueError, "^perplexity must be a finite number of at least 1, got 0.5"),
        ({"perplexity": "5"}, TypeError, "^perplexity must be a number, got str"),
        ({"seed": -1}, ValueError, "^seed must be at least 0, got -1"),
        ({"seed": 1.5}, TypeError, "^seed must be an integer, got float"),
    ],
)
def test_map_bad_input(change, error, match):
    with pytest.raises(error, match=match):
        plot_synthetic_negatives(**{"panels": {"a": GOOD}, **change})


def test_map_without_matplotlib_names_the_extra(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pml-gca\[examples\]"):
        plot_synthetic_negatives({"a": GOOD})

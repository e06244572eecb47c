import sys
from itertools import pairwise

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pml_gca.visualize import plot_gains

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

ROWS = {"GCA-HNG": (6.13, 1.2), "constant coefficient": (-0.42, 0.3), "Mixup": 0.9}


def notes(ax):
    return [text for text in ax.texts if text.get_bbox_patch() is not None]


def assert_apart(figure):
    """No two texts overlap, none is cut off, and none lies on a bar."""
    figure.draw_without_rendering()
    (ax,) = figure.axes
    texts = [*ax.texts, *ax.get_yticklabels(), ax.xaxis.label, *([figure._suptitle] if figure._suptitle else [])]
    low, high = ax.get_xlim()
    ticks = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    texts += [label for place, label in ticks if low <= place <= high]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    boxes += [text.get_window_extent() for legend in figure.legends for text in legend.get_texts()]
    bars = [patch.get_window_extent() for patch in ax.patches]
    for i, a in enumerate(boxes):
        assert a.x0 >= 0
        assert a.y0 >= 0
        assert a.x1 <= figure.bbox.x1
        assert a.y1 <= figure.bbox.y1
        assert not any(a.overlaps(b) for b in boxes[i + 1 :] + bars)
    for a, b in pairwise(bars):
        assert a.y0 > b.y1  # in the order given, the first on top


def test_gains_bars_intervals_and_values(tmp_path):
    figure = plot_gains(ROWS, title="Gains", xlabel="R@1 (points)")
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "R@1 (points)"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ROWS)
    assert [note.get_text() for note in notes(ax)] == ["+6.1 ± 1.2", "−0.4 ± 0.3", "+0.9"]
    assert [patch.get_width() for patch in ax.patches] == pytest.approx([6.13, -0.42, 0.9])
    assert [note.get_horizontalalignment() for note in notes(ax)] == ["left", "right", "left"]
    assert [note.xy[0] for note in notes(ax)] == pytest.approx([7.33, -0.72, 0.9])
    spans = [c.get_segments()[0][:, 0].tolist() for c in ax.collections]
    assert spans == [pytest.approx([4.93, 7.33]), pytest.approx([-0.72, -0.12])]
    assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines)
    assert figure.legends == []
    assert_apart(figure)
    figure.savefig(tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 1000


def test_gains_groups_and_reference():
    groups = {"Mixup": "others", "GCA-HNG": "ours", "constant coefficient": "ours"}
    figure = plot_gains(ROWS, groups=groups, reference=6.6, reference_label="in the paper")
    (ax,) = figure.axes
    first, second, third = (to_hex(patch.get_facecolor()) for patch in ax.patches)
    assert first == second != third
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["others", "ours"]  # as groups has them
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == [third, first]
    (line,) = [line for line in ax.lines if list(line.get_xdata()) == [6.6, 6.6]]
    assert line.is_dashed()
    (label,) = [text for text in ax.texts if text not in notes(ax)]
    assert (label.get_text(), label.xy[0]) == ("in the paper", 6.6)
    for note in notes(ax):  # the line passes behind the values
        assert note.get_zorder() > line.get_zorder()
        assert to_hex(note.get_bbox_patch().get_facecolor()) == "#ffffff"
    assert_apart(figure)
    assert "−1.5" in [text.get_text() for text in plot_gains({"a": 1}, reference=-1.5).axes[0].texts]


@pytest.mark.parametrize("count", [1, 20])
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])  # drawing is too slow to shrink
@given(data=st.data())
def test_gains_nothing_overlaps(count, data):
    words = st.lists(st.text("aeimW_", min_size=1, max_size=60), min_size=1, max_size=8).map(" ".join)
    names = data.draw(st.lists(words, min_size=count, max_size=count, unique=True))
    scale = data.draw(st.sampled_from([0.01, 1.0, 300.0]))
    gain = st.floats(-1, 1).map(lambda x: x * scale)
    value = gain | st.tuples(gain, st.floats(0, 1).map(lambda x: x * scale))
    rows = {name: data.draw(value) for name in names}
    kept = dict(rows)
    groups = data.draw(st.none() | st.just({name: f"group {i % 6} " + name[:50] for i, name in enumerate(names)}))
    if groups is not None and len(set(groups.values())) > 6:
        groups = {name: f"group {i % 6}" for i, name in enumerate(names)}
    look = {"groups": groups, "reference": data.draw(st.none() | gain), "title": data.draw(st.none() | words)}
    figure = plot_gains(rows, xlabel=data.draw(words), **look)
    assert rows == kept
    assert_apart(figure)
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high
    assert look["reference"] is None or low < look["reference"] < high


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([-0.001, 0, -0.25], ["0.00", "0.00", "−0.25"]),
        ([12.0, (-3.04, 0.0), [1, 2], -0.04], ["+12.0", "−3.0 ± 0.0", "+1.0 ± 2.0", "0.0"]),
    ],
)
def test_gains_written_values(values, texts):
    figure = plot_gains({f"row {i}": value for i, value in enumerate(values)})
    assert [note.get_text() for note in notes(figure.axes[0])] == texts


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"rows": [1.0]}, TypeError, "^rows is of type list; expected a mapping"),
        ({"rows": {}}, ValueError, "^rows is empty"),
        ({"rows": {1: 1.0}}, TypeError, "^rows has a name of type int, 1; expected str"),
        ({"rows": {"a": "1"}}, TypeError, "^rows.'a'. must be a number, got str"),
        ({"rows": {"a": True}}, TypeError, "^rows.'a'. must be a number, got bool"),
        ({"rows": {"a": (1.0, None)}}, TypeError, "^rows.'a'..1. must be a number, got NoneType"),
        ({"rows": {"a": (1.0,)}}, ValueError, "^rows.'a'. has 1 values; expected .mean, half"),
        ({"rows": {"a": float("nan")}}, ValueError, "^rows.'a'. must be a finite number, got nan"),
        ({"rows": {"a": (1.0, float("inf"))}}, ValueError, "^rows.'a'..1. must be a finite number, got inf"),
        ({"rows": {"a": (1.0, -1.0)}}, ValueError, "^rows.'a'..1. must be .* at least 0, got -1"),
        ({"reference": "x"}, TypeError, "^reference must be a number, got str"),
        ({"reference": float("inf")}, ValueError, "^reference must be a finite number, got inf"),
        ({"reference_label": "x"}, ValueError, "^reference_label is 'x', but there is no reference"),
        ({"groups": ["a"]}, TypeError, "^groups is of type list; expected a mapping"),
        ({"groups": {"b": "x"}}, ValueError, "^groups must have the same names as rows; .'a'. are missing, .'b'. are"),
        ({"groups": {"a": 1}}, TypeError, "^groups.'a'. is of type int; expected str"),
        ({"rows": dict.fromkeys("abcdefg", 1), "groups": {c: c for c in "abcdefg"}}, ValueError, "has 7 groups"),
    ],
)
def test_gains_bad_input(change, error, match):
    with pytest.raises(error, match=match):
        plot_gains(**{"rows": {"a": 1.0}, **change})


def test_gains_without_matplotlib_name_the_extra(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pml-gca\[examples\]"):
        plot_gains(ROWS)

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.visualize import hardness, plot_hardness

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


def history(steps=4, scale=1.0, spread=0.2):
    middle = [1 + scale * i / steps for i in range(steps)]
    return {
        "iterations": [100 * i for i in range(steps)],
        "hardness": [[m * (1 + spread * k) for k in (-2, -1, 0, 1, 2)] for m in middle],
    }


# ---- hardness


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), size=st.integers(0, 8), dim=st.integers(1, 5), data=st.data())
def test_hardness_is_the_ratio_of_distances(seed, size, dim, data):
    g = torch.Generator().manual_seed(seed)
    a, p, s = (torch.randn(size, dim, generator=g, dtype=torch.float64) for _ in range(3))
    same = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    p[same] = a[same]
    kept = [x.clone() for x in (a, p, s)]
    found = hardness(a.requires_grad_(True), p, s)
    a.requires_grad_(False)
    expected = []
    for row in range(size):
        near, far = (sum((x - y) ** 2 for x, y in zip(a[row], b[row], strict=True)) ** 0.5 for b in (p, s))
        if not same[row]:
            expected.append(float(far / near))
    assert found.tolist() == pytest.approx(expected)
    assert not found.requires_grad
    assert all(torch.equal(x, y) for x, y in zip((a, p, s), kept, strict=True))


def test_hardness_of_the_positive_is_one_and_of_the_anchor_zero():
    a, p = torch.zeros(2, 3), torch.ones(2, 3)
    assert hardness(a, p, p).tolist() == [1, 1]
    assert hardness(a, p, a).tolist() == [0, 0]
    assert hardness(a, a, p).shape == (0,)
    half = hardness(a.half(), p.half(), 300 * p.half())  # squares exceed half precision
    assert half.dtype == torch.float32
    assert half.tolist() == [300, 300]


@pytest.mark.parametrize("name", ["anchors", "positives", "synthetic"])
@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ([[1.0]], TypeError, "must be a torch.Tensor, got list"),
        (torch.ones(4, 2, dtype=torch.long), TypeError, "must be floating point, got torch.int64"),
        (torch.ones(4), ValueError, r"\(4,\); expected \(S, D\)"),
        (torch.full((4, 2), torch.nan), ValueError, "must be finite, got 8 NaN"),
    ],
)
def test_hardness_bad_input(name, value, error, match):
    good = {key: torch.ones(4, 2) for key in ("anchors", "positives", "synthetic")}
    with pytest.raises(error, match=f"^{name} .*{match}"):
        hardness(**{**good, name: value})


def test_hardness_different_shapes():
    with pytest.raises(ValueError, match=r"^synthetic has shape \(3, 2\); expected"):
        hardness(torch.ones(4, 2), torch.ones(4, 2), torch.ones(3, 2))


# ---- plot_hardness


def test_plot_hardness_medians_bands_and_axes(tmp_path):
    histories = {"Random": history(), "GCA-HNG": history(3, 0.1)}
    figure = plot_hardness(histories, title="Hardness")
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    limits = {(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}
    assert len(limits) == 1
    for ax, (name, values) in zip(figure.axes, histories.items(), strict=True):
        assert ax.get_title() == name
        median = ax.lines[0]
        assert median.get_xdata().tolist() == values["iterations"]
        assert median.get_ydata().tolist() == [row[2] for row in values["hardness"]]
        bands = [band.get_paths()[0].vertices[:, 1] for band in ax.collections]
        for edge, band in enumerate(bands):  # the outer one first
            found = sorted(set(band.round(9).tolist()))
            assert found == pytest.approx(
                sorted({round(row[i], 9) for row in values["hardness"] for i in (edge, 4 - edge)})
            )
        assert len(bands) == 2
        (one,) = [line for line in ax.lines if list(line.get_ydata()) == [1, 1] and line.get_linestyle() == ":"]
        assert list(one.get_xdata()) == [0, 1]  # from edge to edge
        assert [text.get_text() for text in ax.texts] == [f"{values['hardness'][-1][2]:.2f}"]
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > max(map(max, values["hardness"]))
    assert to_rgb(figure.axes[0].lines[0].get_color()) != to_rgb(figure.axes[1].lines[0].get_color())
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    parts = ["middle 50% of the negatives", "middle 90% of the negatives"]
    assert texts == ["median", *parts, "as near as the positive"]
    label = figure._supylabel
    assert label.get_text() == "Distance from anchor to negative,\nrelative to the positive"
    figure.savefig(tmp_path / "hardness.png")
    assert (tmp_path / "hardness.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 5])
def test_plot_hardness_texts_stay_inside_and_apart(count):
    name = "a generator with a long name, number"
    figure = plot_hardness({f"{name} {i}": history(1 + i) for i in range(count)}, title="Title", ylabel="long " * 16)
    assert len(figure.axes) == count
    figure.draw_without_rendering()
    texts = [figure._suptitle, figure._supylabel, *figure.legends[0].get_texts()]
    for ax in figure.axes:
        texts += [ax.title, *ax.texts]
        texts += [ax.xaxis.label] if ax.get_xlabel() else []
    boxes = [text.get_window_extent() for text in texts]
    axes = [ax.get_window_extent() for ax in figure.axes]
    for i, a in enumerate(boxes):
        assert a.x0 >= 0
        assert a.y0 >= 0
        assert a.x1 <= figure.bbox.x1
        assert a.y1 <= figure.bbox.y1
        assert not any(a.overlaps(b) for b in boxes[i + 1 :] + axes)


def test_plot_hardness_other_keys_levels_and_containers():
    table = torch.tensor([[0.5, 1.5, 2.5], [1.0, 2.0, 3.0]], requires_grad=True)
    steps = torch.tensor([0, 10])
    kept = table.detach().clone()
    look = {"iterations": "step", "quantiles": "q", "levels": [0.1, 0.5, 0.9]}
    given = {"step": steps, "q": table}
    arrays = {"step": steps.numpy(), "q": table.detach().numpy()}
    lists = {"step": steps.tolist(), "q": list(table.detach())}
    for ax in plot_hardness({"a": given, "b": arrays, "c": lists}, **look).axes:
        assert ax.lines[0].get_ydata().tolist() == [1.5, 2.0]
        assert len(ax.collections) == 1
    assert torch.equal(table, kept)
    alone = plot_hardness({"a": {"iterations": [0, 1], "hardness": [[1.0], [2.0]]}}, levels=[0.5])
    assert len(alone.axes[0].collections) == 0


GOOD = history(2)
BAD = "^histories.'a'.."


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"histories": [GOOD]}, TypeError, "^histories is of type list; expected a mapping"),
        ({"histories": {}}, ValueError, "^histories is empty"),
        ({"histories": {"a": [1]}}, TypeError, "^histories.'a'. is of type list; expected a mapping"),
        ({"histories": {"a": {"iterations": [0]}}}, ValueError, "^histories.'a'. lacks .'hardness'.; it has"),
        ({"histories": {"a": {**GOOD, "iterations": []}}}, ValueError, BAD + "'iterations'. has shape .0,."),
        (
            {"histories": {"a": {**GOOD, "iterations": [0]}}},
            ValueError,
            BAD + "'hardness'. has shape .2, 5.; expected .1,",
        ),
        ({"histories": {"a": {**GOOD, "iterations": [1, 1]}}}, ValueError, BAD + "'iterations'. must rise"),
        ({"histories": {"a": {**GOOD, "iterations": [-1, 1]}}}, ValueError, BAD + "'iterations'. must rise"),
        ({"histories": {"a": {**GOOD, "iterations": 3}}}, TypeError, BAD + "'iterations'. must hold numbers"),
        ({"histories": {"a": {**GOOD, "hardness": [[1.0], [1.0, 2.0]]}}}, ValueError, BAD + "'hardness'. must hold"),
        ({"histories": {"a": {**GOOD, "hardness": [[1, 2, 3, 4, 5]] * 3}}}, ValueError, BAD + "'hardness'. has shape"),
        ({"histories": {"a": {**GOOD, "hardness": [[1, 2, 4, 3, 5]] * 2}}}, ValueError, "in the order of levels"),
        ({"histories": {"a": {**GOOD, "hardness": [[-1, 2, 3, 4, 5]] * 2}}}, ValueError, "none negative"),
        (
            {"histories": {"a": {**GOOD, "hardness": [[float("nan")] * 5] * 2}}},
            ValueError,
            BAD + "'hardness'. must be finite",
        ),
        ({"levels": 0.5}, TypeError, "^levels is of type float"),
        ({"levels": ["0.5"]}, TypeError, "^levels.0. must be a number, got str"),
        ({"levels": [0.5, 1.5, 2]}, ValueError, "^levels.1. must be at most 1, got 1.5"),
        ({"levels": []}, ValueError, "^levels is .*expected rising numbers"),
        ({"levels": [0.25, 0.75]}, ValueError, "^levels is .*expected rising numbers"),
        ({"levels": [0.1, 0.5, 0.8]}, ValueError, "^levels is .*symmetric about 0.5"),
        ({"levels": [0.9, 0.5, 0.1]}, ValueError, "^levels is .*expected rising numbers"),
    ],
)
def test_plot_hardness_bad_input(change, error, match):
    with pytest.raises(error, match=match):
        plot_hardness(**{"histories": {"a": GOOD}, **change})


def test_plot_hardness_without_matplotlib_names_the_extra(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pml-gca\[examples\]"):
        plot_hardness({"a": GOOD})
    assert hardness(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)).tolist() == [1]

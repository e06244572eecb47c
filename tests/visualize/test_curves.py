from itertools import pairwise

import pytest

from pml_gca import visualize
from pml_gca.visualize import plot_curves

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


def run(values=(0.3, 0.5, 0.6), pace=0.1, step=100):
    its = [step * i for i in range(len(values))]
    return {"iterations": its, "seconds": [pace * i for i in its], "recall_at_1": list(values)}


def test_curves_two_panels_lines_and_values(tmp_path):
    runs = {"N-pairs": run(), "N-pairs + GCA-HNG": run((0.3, 0.55, 0.652), pace=0.2)}
    figure = plot_curves(runs, title="Validation classes")
    assert isinstance(figure, Figure)
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel()) == ("Training iterations", "Training time (s)")
    assert first.get_ylabel() == "Recall@1 (%)"
    for ax, key in ((first, "iterations"), (second, "seconds")):
        lines = ax.get_legend_handles_labels()[0]
        assert [line.get_label() for line in lines] == list(runs)
        for line, values in zip(lines, runs.values(), strict=True):
            assert list(line.get_xdata()) == pytest.approx(values[key])
            assert list(line.get_ydata()) == pytest.approx([100 * v for v in values["recall_at_1"]])
        assert [text.get_text() for text in ax.texts] == ["60.0", "65.2"]
        assert ax.get_xlim()[1] >= max(max(values[key]) for values in runs.values())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    # The legend lies below the axes and their labels, on nothing.
    assert legend.get_window_extent().y1 <= min(ax.get_tightbbox().y0 for ax in figure.axes) + 1


def test_curves_seeds_give_a_mean_and_a_band():
    seeds = [run((0.2, 0.4), pace=0.1), run((0.4, 0.6), pace=0.3)]
    figure = plot_curves({"one": run((0.1, 0.2)), "two": seeds})
    for ax, times in zip(figure.axes, ([0, 100], [0, 20]), strict=True):
        line = ax.get_legend_handles_labels()[0][1]
        assert line.get_label() == "two (mean ± s.d. of 2 seeds)"
        assert list(line.get_xdata()) == pytest.approx(times)
        assert list(line.get_ydata()) == pytest.approx([30, 50])
        (band,) = ax.collections
        low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
        assert (low, high) == pytest.approx((30 - 200**0.5, 50 + 200**0.5))


@pytest.mark.parametrize("count", [2, 12])
def test_curves_value_labels_do_not_overlap_or_leave_the_figure(count):
    figure = plot_curves({f"run {i}": run((0.3, 0.6 + 0.0005 * i)) for i in range(count)}, title="Title")
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
        assert all(a.y0 + 0.9 * a.height <= b.y0 for a, b in pairwise(boxes))
        assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
        assert all(box.x0 >= ax.bbox.x1 and box.x1 <= figure.bbox.x1 for box in boxes)
    looks = {(h.get_color(), h.get_linestyle()) for h in figure.axes[0].get_legend_handles_labels()[0]}
    assert len(looks) == count


@pytest.mark.parametrize("panels", [1, 2])
def test_curves_legend_of_long_names_stays_inside(panels):
    runs = {f"{number} {'a name of many words ' * 6}".strip(): [run(), run()] for number in range(3)}
    figure = visualize.plot_curves(runs, seconds="seconds" if panels == 2 else None)
    (legend,) = figure.legends
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert [" ".join(text.get_text().split()) for text in legend.get_texts()] == [
        f"{name} (mean ± s.d. of 2 seeds)" for name in runs
    ]


def test_curves_of_runs_whose_names_begin_with_an_underscore():
    figure = plot_curves({"_hidden": run(), "b": run()})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["_hidden", "b"]


def test_curves_one_panel_other_metric_single_point():
    values = {"step": [0], "loss": [2.5]}
    figure = plot_curves({"a": values}, "loss", metric_label="Loss", percent=False, iterations="step", seconds=None)
    (ax,) = figure.axes
    assert ax.get_ylabel() == "Loss"
    assert [text.get_text() for text in ax.texts] == ["2.5"]


@pytest.mark.parametrize(
    ("runs", "match"),
    [
        ({}, "^runs must"),
        ([run()], "^runs must"),
        ({"a": []}, "^runs.'a'. is empty"),
        ({"a": [1, 2]}, r"^runs.'a'. is \[1, 2\]; expected a mapping from .*'seconds'"),
        ({"a": 5}, "^runs.'a'. is 5; expected a mapping"),
        ({"a": {"iterations": [0]}}, "^runs.'a'. lacks .*seconds.*recall_at_1"),
        ({"a": {**run(), "seconds": [1.0]}}, "lengths .1, 3."),
        ({"a": [run((0.1,)), run((0.1, 0.2))]}, "lengths .1, 2."),
        ({"a": run(())}, "lengths .0."),
        ({"a": [run(), run(step=50)]}, "different 'iterations'"),
        ({"a": run((0.1, float("nan")))}, "not finite"),
        ({"a": run((60.0, 70.0))}, "outside"),
        ({"a": run(pace=-1.0)}, "negative"),
    ],
)
def test_curves_bad_input(runs, match):
    with pytest.raises(ValueError, match=match):
        plot_curves(runs)

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca import visualize
from pml_gca.visualize import nearest_neighbours, plot_curves, plot_retrieval
from pml_gca.visualize.shared import grid, wrap

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

RUN = {"iterations": [0, 1], "seconds": [0, 1], "recall_at_1": [0.1, 0.2]}


def test_a_figure_is_saved(tmp_path, capsys):
    assert visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "run", "reason"),
    [
        ("a", {**RUN, "recall_at_1": [0.1, float("nan")]}, "ValueError: runs['a'] holds values that are not finite"),
        ("a", {**RUN, "recall_at_1": [0.1]}, "ValueError: "),
    ],
)
def test_failed_figures_give_the_reason(name, run, reason, tmp_path, capsys):
    assert not visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({name: run}))
    message = capsys.readouterr().err
    assert message.startswith(f"{tmp_path / 'a.png'} could not be drawn ({reason}")
    assert message.endswith("; results are not affected\n")


def test_a_full_disk_or_a_missing_package_does_not_end_a_run(tmp_path, capsys, monkeypatch):
    assert not visualize.try_to_save(tmp_path / "nowhere" / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert "(FileNotFoundError" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert "pip install 'pml-gca[examples]'" in capsys.readouterr().err


@given(count=st.integers(1, 50), most=st.integers(1, 6))
def test_grid_has_the_fewest_rows_and_no_empty_column(count, most):
    rows, columns = grid(count, most)
    assert columns <= most
    assert (rows - 1) * most < count <= rows * columns
    assert rows * (columns - 1) < count


@settings(max_examples=12)
@given(words=st.lists(st.text("aimW_", min_size=1, max_size=60), min_size=1, max_size=8), inches=st.floats(0.5, 4))
def test_wrapped_text_keeps_its_characters_and_fits_the_width(words, inches):
    figure = Figure()
    text = " ".join(words) + "\nlast line"
    wrapped = wrap(figure, text, inches, 10)
    assert "".join(wrapped.split()) == "".join(text.split())
    assert wrapped.splitlines() == [
        line for part in text.splitlines() for line in wrap(figure, part, inches, 10).splitlines()
    ]
    assert figure.texts == []
    assert figure.text(0, 0, wrapped, fontsize=10).get_window_extent().width <= inches * figure.dpi
    assert wrap(figure, "short\n", 9, 10) == "short"


def test_without_matplotlib_names_the_extra(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    images, labels = torch.rand(12, 3, 10, 14), torch.arange(12) % 3
    with pytest.raises(ImportError, match=r"pml-gca\[examples\]"):
        plot_curves({"a": RUN})
    with pytest.raises(ImportError, match=r"pml-gca\[examples\]"):
        plot_retrieval(images, labels, torch.tensor([0, 4]), {"a": torch.zeros(2, 4, dtype=torch.long)})
    assert nearest_neighbours(torch.eye(3), torch.tensor([0]), 1).shape == (1, 1)


def test_pyplot_is_not_used():
    plot_curves({"a": RUN})
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

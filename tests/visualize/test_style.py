import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.visualize.style import grid, wrap

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


@given(count=st.integers(1, 50), most=st.integers(1, 6))
def test_grid_has_as_few_rows_as_can_be_and_no_column_to_spare(count, most):
    rows, columns = grid(count, most)
    assert columns <= most
    assert (rows - 1) * most < count <= rows * columns
    assert rows * (columns - 1) < count


@settings(max_examples=12)
@given(words=st.lists(st.text("aimW_", min_size=1, max_size=60), min_size=1, max_size=8), inches=st.floats(0.5, 4))
def test_wrap_keeps_the_characters_and_the_width(words, inches):
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

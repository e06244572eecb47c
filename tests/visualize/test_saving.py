import sys

import pytest

from pml_gca import visualize

RUN = {"iterations": [0, 1], "seconds": [0, 1], "recall_at_1": [0.1, 0.2]}


def test_a_figure_is_saved(tmp_path, capsys):
    assert visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "run", "reason"),
    [
        ("a", {**RUN, "recall_at_1": [0.1, float("nan")]}, "ValueError: runs['a'] holds values that are not finite"),
        (r"$\frac$", RUN, "ValueError: "),  # which matplotlib takes for a formula
    ],
)
def test_a_figure_that_cannot_be_drawn_says_why(name, run, reason, tmp_path, capsys):
    assert not visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({name: run}))
    message = capsys.readouterr().err
    assert message.startswith(f"{tmp_path / 'a.png'} could not be drawn ({reason}")
    assert message.endswith("; results are not affected\n")


def test_neither_the_disk_nor_a_missing_package_cost_a_run(tmp_path, capsys, monkeypatch):
    assert not visualize.try_to_save(tmp_path / "nowhere" / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert "(FileNotFoundError" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not visualize.try_to_save(tmp_path / "a.png", lambda: visualize.plot_curves({"a": RUN}))
    assert "pip install 'pml-gca[examples]'" in capsys.readouterr().err

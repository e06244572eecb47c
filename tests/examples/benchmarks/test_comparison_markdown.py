import math

import pytest
from helpers.comparison import result

# The scripts, which helpers.comparison puts on the path.
# isort: split
from comparison import markdown as tables


def test_intervals():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(tables.interval([1.0])[1])
    eleven = [float(x) for x in range(11)]
    assert tables.interval(eleven)[1] == pytest.approx(2.228 * 11**0.5 / 11**0.5)
    assert tables.interval(eleven * 9)[1] > 1.96 * 10**0.5 / 99**0.5
    assert tables.cell_text([0.5, 0.5]) == "50.0 ± 0.0"
    assert tables.cell_text([0.015], sign=True) == "+1.5"


RESULTS = {
    "none": {0: result(0.5), 1: result(0.3)},
    "gca": {0: result(0.52, (0.1, 0.4, 0.5)), 1: result(0.32, (0.1, 0.3, 0.5)), 2: result(0.9)},
    "real": {1: result(0.33, (0.1, 0.2, 0.3))},
}
NAMES = {"none": "alone", "gca": "ours", "real": "control", "random": "another"}


def test_differences_are_paired():
    table = tables.loss_table(RESULTS, NAMES)
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% |\n" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% |\n" in table
    table = tables.loss_table(RESULTS, NAMES, {"none": 1.0, "gca": 3.0, "real": 1.5})
    assert "| alone | 2 | 40.0 ± 127.1 |  | 10.0 ± 0.0 | 100 ± 0% | 1.00 × | 100 ± 0% |" in table
    assert "| ours | 3 | 58.0 ± 73.2 | +2.0 ± 0.0 | 10.0 ± 0.0 | 75 ± 318% | 3.00 × | 225 ± 953% |" in table
    assert "| control | 1 | 33.0 | +3.0 | 10.0 | – | 1.50 × | – |" in table
    table = tables.control_table(RESULTS, NAMES, ("gca", "random"), ("random", "real"))
    assert table.splitlines() == ["| Recall@1 less that of | ours |", "| --- | ---: |", "| control | -1.0 |"]
    assert tables.control_table(RESULTS, NAMES, ("gca",), ("random",)) == ""
    table = tables.step_table(RESULTS, NAMES, [("none", "gca"), ("random", "gca"), ("gca", "real")])
    assert table.splitlines()[2:] == ["| alone | ours | +2.0 ± 0.0 |", "| ours | control | +1.0 |"]
    assert tables.step_table(RESULTS, NAMES, [("random", "gca")]) == ""
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["random", "real"], {"gca": 3.0}).splitlines()
    assert lines[2:] == [
        "| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 | 3.00 × |",
        "| control | 1 | 33.0 | +1.0 | 10.0 |  |",
    ]
    lines = tables.ablation_table(RESULTS, NAMES, "gca", ["real"]).splitlines()
    assert lines[2:] == ["| ours | 3 | 58.0 ± 73.2 |  | 10.0 ± 0.0 |", "| control | 1 | 33.0 | +1.0 | 10.0 |"]
    assert tables.ablation_table(RESULTS, NAMES, "gca", ["random"]) == ""

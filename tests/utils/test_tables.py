import pytest

from pml_gca.utils.tables import comparison_table, markdown_table, metric_title, metrics_table


def test_markdown():
    assert markdown_table(["a", "b", "long"], [["x", "y", "1"]], left=2).splitlines() == [
        "| a | b | long |",
        "| --- | --- | ---: |",
        "| x | y | 1 |",
    ]


def test_padded_columns_line_up():
    lines = markdown_table(["", "Recall@1"], [["one", "5.0"], ["longer name", "12.5"]], padded=True).splitlines()
    assert lines == [
        "|             | Recall@1 |",
        "| ----------- | -------: |",
        "| one         |      5.0 |",
        "| longer name |     12.5 |",
    ]


def test_a_row_must_fill_the_columns():
    with pytest.raises(ValueError, match=r"rows holds \['x'\], 1 cells; expected 2, one for each title"):
        markdown_table(["a", "b"], [["x"]])


def test_metrics_have_titles_and_may_be_missing():
    assert [metric_title(m) for m in ("recall_at_10", "mean_average_precision_at_r")] == ["Recall@10", "MAP@R"]
    table = metrics_table({"first": {"recall_at_1": "50.0"}, "second": {}}, ["recall_at_1", "r_precision"])
    assert table.splitlines()[0] == "|  | Recall@1 | R-precision |"
    assert table.splitlines()[2:] == ["| first | 50.0 |  |", "| second |  |  |"]


def test_each_row_is_compared_with_the_first():
    rows = {"alone": [50.0, 0.5], "ours": [52.25, 0.75]}
    lines = comparison_table(["Recall@1", "s"], rows, [2, 1]).splitlines()
    assert lines[0] == "|            | Recall@1 |    s |"
    assert lines[2:] == [
        "| alone      |    50.00 |  0.5 |",
        "| ours       |    52.25 |  0.8 |",
        "| difference |    +2.25 | +0.2 |",
    ]
    labels = [
        line.split("|")[1].strip() for line in comparison_table(["R", "s"], {**rows, "b": [1, 1]}, [0, 0]).splitlines()
    ]
    assert labels[2:] == ["alone", "ours", "b", "difference, ours", "difference, b"]
    assert len(comparison_table(["R", "s"], {"alone": [1, 1]}, [0, 0]).splitlines()) == 3

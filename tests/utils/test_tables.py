import pytest

from pml_gca.utils.tables import markdown_table, metric_title, metrics_table


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

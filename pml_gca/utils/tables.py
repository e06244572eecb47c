"""Markdown tables of metrics."""

from collections.abc import Mapping, Sequence

TITLES = {"mean_average_precision_at_r": "MAP@R", "r_precision": "R-precision"}


def metric_title(metric: str) -> str:
    """Return the title of a metric, such as "Recall@1" for `recall_at_1`."""
    return TITLES.get(metric) or metric.replace("recall_at_", "Recall@")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, padded: bool = False) -> str:
    """Return a Markdown table.

    Args:
        head: titles of the columns.
        rows: cells of each row, as many as there are titles.
        left: how many of the first columns are aligned to the left. The others are aligned to the right.
        padded: fill cells with spaces to line up the columns in a terminal as well.

    Raises:
        ValueError: a row has more or fewer cells than there are titles.

    >>> print(markdown_table(["", "Recall@1"], [["loss alone", "51.5"], ["GCA-HNG", "58.5"]], padded=True))
    |            | Recall@1 |
    | ---------- | -------: |
    | loss alone |     51.5 |
    | GCA-HNG    |     58.5 |
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"rows holds {list(row)}, {len(row)} cells; expected {len(head)}, one for each title")
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    lines = [list(head), *map(list, rows)]
    if padded:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
        lines = [
            [cell.ljust(width) if k < left else cell.rjust(width) for k, (cell, width) in enumerate(sized)]
            for sized in (zip(line, widths, strict=True) for line in lines)
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def metrics_table(rows: Mapping[str, Mapping[str, str]], metrics: Sequence[str]) -> str:
    """Return a Markdown table with one column for each of `metrics`; a missing metric stays blank."""
    head = ["", *map(metric_title, metrics)]
    return markdown_table(
        head, [[name, *(cells.get(metric, "") for metric in metrics)] for name, cells in rows.items()]
    )


def comparison_table(head: Sequence[str], rows: Mapping[str, Sequence[float]], digits: Sequence[int]) -> str:
    """Return a padded Markdown table of numbers that ends with the difference of each row to the first one.

    Args:
        head: titles of the numbers.
        rows: numbers of each row, as many as there are titles, by the name of the row.
        digits: decimal places of each number.

    >>> print(comparison_table(["Recall@1", "s"], {"loss alone": [51.5, 0.03], "GCA-HNG": [58.5, 0.1]}, [1, 2]))
    |            | Recall@1 |     s |
    | ---------- | -------: | ----: |
    | loss alone |     51.5 |  0.03 |
    | GCA-HNG    |     58.5 |  0.10 |
    | difference |     +7.0 | +0.07 |
    """
    cells = [[name, *(f"{x:.{n}f}" for x, n in zip(row, digits, strict=True))] for name, row in rows.items()]
    first, *others = rows
    for name in others:
        label = "difference" if len(others) == 1 else f"difference, {name}"
        changes = zip(rows[name], rows[first], digits, strict=True)
        cells.append([label, *(f"{new - old:+.{n}f}" for new, old, n in changes)])
    return markdown_table(["", *head], cells, padded=True)

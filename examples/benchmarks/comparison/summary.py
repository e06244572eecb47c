"""One table of all kept results of a study: a row for each contender, a column for each loss. It needs no images."""

from collections.abc import Mapping

from comparison.beside_the_loss import LOSSES
from comparison.markdown import cell_text
from comparison.registry import TITLES
from comparison.study import Study
from pml_gca.utils.tables import markdown_table, metric_title

FEWEST = 3
"""Seeds from which on a mean and an interval are shown; fewer are listed one by one."""


def summary(study: Study, stage: str, metric: str) -> str:
    """Return the table as Markdown; empty without results.

    The loss alone has its mean, 95% interval and number of seeds. The others have the difference to it, of the seeds
    that both have, in points.

    Args:
        study: whose tables and finished cells are read, whatever their settings.
        stage: `"run"` or `"screen"`.
        metric: column of the results; screened seeds have `val_recall_at_1` alone.
    """
    results: dict[str, dict[str, dict[int, float]]] = {}
    for row in study.all_runs():
        if row["stage"] == stage:
            value = float(row.get(metric, 0.0))
            results.setdefault(row["loss"], {}).setdefault(row["contender"], {})[row["number"]] = value
    losses = [loss for loss in LOSSES if loss in results]
    found = {name for by_name in results.values() for name in by_name}
    names = [*(name for name in TITLES if name in found), *sorted(found.difference(TITLES))]
    rows: list[list[str]] = []
    for name in names:
        shown = [difference_text(results[loss].get(name, {}), results[loss].get("none", {}), name) for loss in losses]
        rows.append([name, TITLES.get(name, "a row of an earlier version"), *shown])
    title = metric_title(metric.removeprefix("val_"))
    return markdown_table([title, "what it is", *losses], rows, left=2) if rows else ""


def difference_text(seeds: Mapping[int, float], alone: Mapping[int, float], name: str) -> str:
    """Return the cell of a contender: of the loss alone its values, of others the differences to it, seed by seed."""
    if name == "none":
        values = list(alone.values())
        return f"{cell_text(values)} ({len(values)})" if len(values) >= FEWEST else listed(values, sign=False)
    both = [seeds[number] - alone[number] for number in sorted(seeds) if number in alone]
    return f"{cell_text(both, sign=True)} ({len(both)})" if len(both) >= FEWEST else listed(both)


def listed(values: list[float], *, sign: bool = True) -> str:
    """Return values in percent, one by one."""
    return ", ".join(f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}" for value in values)

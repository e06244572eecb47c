"""One table of all kept results of a study: a row for each contender, a column for each loss. It needs no images."""

from collections.abc import Iterable, Mapping

from comparison.beside_the_loss import LOSSES
from comparison.markdown import cell_text
from comparison.registry import TITLES
from comparison.study import Study
from comparison.table import ORIGIN, Row, key_of, name_of, part_of
from pml_gca.utils.tables import markdown_table, metric_title

FEWEST = 3
"""Seeds from which on a mean and an interval are shown; fewer are listed one by one."""
SHARED = (
    *("data", "backbone", "weights", "frozen_through", "views", "augment", "image_size", "embedding_size"),
    *("classes_per_batch", "samples_per_class"),
)
"""Settings that all rows of a table share."""
STAGES = {"runs": "run", "screened": "screen"}

Seeds = Mapping[int, Row]


def summary(study: Study, stage: str, metric: str) -> str:
    """Return the table as Markdown, and a line on machines; empty without results.

    The loss alone has its mean, 95% interval and number of seeds. The others have the difference to it in points, of
    the seeds that both have.

    Args:
        study: whose tables and finished cells are read.
        stage: `"run"` or `"screen"`.
        metric: column of the results; screened seeds have `val_recall_at_1` alone.

    Raises:
        ValueError: rows differ in one of the settings `SHARED`, or one lacks the metric.
    """
    results: dict[str, dict[str, dict[int, Row]]] = {}
    rows = [row for row in study.all_runs() if row["stage"] == stage]
    check_shared(rows, study)
    for row in rows:
        part_of(row, (metric,), study.folder, key_of(row))
        results.setdefault(row["loss"], {}).setdefault(row["contender"], {})[row["number"]] = row
    found = {name for by_name in results.values() for name in by_name}
    losses, names = in_order(results, LOSSES), in_order(found, TITLES)
    lines, mixed, all_pairs = [], 0, 0
    for name in names:
        cells = []
        for loss in losses:
            seeds, alone = results[loss].get(name, {}), results[loss].get("none", {})
            cells.append(cell_of(seeds, None if name == "none" else alone, metric))
            pairs = [(seeds[number], alone[number]) for number in seeds if number in alone and name != "none"]
            all_pairs += len(pairs)
            mixed += sum(any(one.get(key) != other.get(key) for key in ORIGIN[1:]) for one, other in pairs)
        lines.append([name, TITLES.get(name, "a row of an earlier version"), *cells])
    if not lines:
        return ""
    table = markdown_table([metric_title(metric.removeprefix("val_")), "what it is", *losses], lines, left=2)
    note = f"{mixed} of {all_pairs} differences are between runs of two machines (torch, processor)."
    return f"{table}\n\n{note}" if mixed else table


def check_shared(rows: Iterable[Row], study: Study) -> None:
    """Raise ValueError if rows differ in a setting that all of a table share."""
    first: Row | None = None
    for row in rows:
        first = first or row
        for name in SHARED:
            if row.get(name) != first.get(name):
                found = (f"{r.get(name)} in {name_of(key_of(r))}" for r in (first, row))
                raise ValueError(f"{study} mixes settings: {name} is {' and '.join(found)}")


def in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names that were found: known ones in their order, then the others."""
    known, found = list(known), set(found)
    return [*(name for name in known if name in found), *sorted(found.difference(known))]


def cell_of(seeds: Seeds, alone: Seeds | None, metric: str) -> str:
    """Return the cell of a contender: its values, or the differences to the loss alone.

    Args:
        seeds: its rows.
        alone: those of the loss alone; None if this is it.
        metric: column.
    """
    shared = [number for number in sorted(seeds) if alone is None or number in alone]
    base = [0.0 if alone is None else float(alone[number][metric]) for number in shared]
    values = [float(seeds[number][metric]) - value for number, value in zip(shared, base, strict=True)]
    sign = alone is not None
    if len(values) >= FEWEST:
        text = f"{cell_text(values, sign=sign)} ({len(values)})"
    else:
        text = ", ".join(f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}" for value in values)
    diverged = sum("diverged" in seeds[number] for number in shared)
    return f"{text}, {diverged} diverged" if diverged else text

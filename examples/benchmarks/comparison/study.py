"""Results of a study: four tables, and the files of finished cells that are not in them yet."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from comparison.cells import Cell
from comparison.table import KEY, ORIGIN, REMEDY, Row, Table, key_of, name_of, new_row, part_of
from pml_gca.utils import runs
from pml_gca.utils.files import write_json

METRICS = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "mean_average_precision_at_r", "r_precision")
CURVE = ("iterations", "seconds", "recall_at_1")
SEEN = ("val_recall_at_1", "observed", "hardness", "strength", "coefficients")
PANEL = ("embeddings", "labels", "synthetic", "synthetic_labels")


class Kept(NamedTuple):
    """The rows of a cell for the tables of runs and curves, and the files that they are in."""

    run: Row
    curve: Row
    files: tuple[Path, Path]


class Study:
    """The results in a folder: tables, and `cells/`, where git does not look, with a file for each newer cell.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def runs(self) -> Table:
        """Trials and runs, without their curves."""
        return Table(self.folder / "runs.csv", ("diverged", "val_recall_at_1", "seconds", *METRICS))

    @cached_property
    def curves(self) -> Table:
        """Recall@1 on validation classes while they trained."""
        return Table(self.folder / "curves.csv", CURVE)

    @cached_property
    def times(self) -> Table:
        """Seconds of an iteration, see `comparison.timing`."""
        return Table(self.folder / "times.csv", ("seconds",))

    @cached_property
    def watched(self) -> Table:
        """Observations inside some runs, see `comparison.probes`."""
        return Table(self.folder / "watched.csv", (*SEEN, "classes", "names", *PANEL))

    def file(self, cell: Cell) -> Path:
        """Return where the result of a cell waits to be added."""
        return self.folder / "cells" / cell.stage / cell.loss / cell.contender / f"{cell.number}.json"

    def read(self, cell: Cell, remedy: str = REMEDY) -> dict[str, Any] | None:
        """Return the result of a cell as `train` gave it; None if it is not done.

        Raises:
            ValueError: it has other settings, when the message advises `remedy`, or is incomplete.
        """
        kept = self._find(cell.key)
        if kept is None:
            return None
        self.runs.checked(kept.run, cell, kept.files[0], remedy)
        return result_of(kept)

    def load(self, stage: str, loss: str, contender: str, number: int) -> tuple[Cell, Row, dict[str, Any]]:
        """Return a cell that is done, its origin, and its result.

        Raises:
            ValueError: there is none, or it is incomplete.
        """
        key = (stage, loss, contender, number)
        kept = self._find(key)
        if kept is None:
            raise ValueError(f"{self} has no {name_of(key)}")
        made_by = {name: kept.run[name] for name in ORIGIN if name in kept.run}
        return Cell(*key, self.runs.settings(kept.run)), made_by, result_of(kept)

    def settings(self, cell: Cell, *names: str) -> dict[str, Any]:
        """Return some settings of a cell that is done; nothing if it is not."""
        kept = self._find(cell.key)
        return {} if kept is None else {name: self.runs.settings(kept.run)[name] for name in names}

    def _find(self, key: tuple[str, str, str, int]) -> Kept | None:
        if key in self.runs.rows:
            return Kept(self.runs.rows[key], self.curves.rows.get(key, {}), (self.runs.file, self.curves.file))
        file = self.file(Cell(*key, {}))
        return kept_in(file) if file.exists() else None

    def all_runs(self) -> list[Row]:
        """Return the rows of all cells that are done, whatever their settings, of tables and files."""
        waiting = (kept_in(file).run for file in sorted((self.folder / "cells").glob("*/*/*/*.json")))
        return list({**{key_of(row): row for row in waiting}, **self.runs.rows}.values())

    def reread(self) -> None:
        """Forget what was read of the tables: another process may have added cells."""
        for name in ("runs", "curves", "times", "watched"):
            self.__dict__.pop(name, None)

    def has_runs(self) -> bool:
        """Return whether any run is done, with any settings."""
        return any(key[0] == "run" for key in self.runs.rows) or any(self.folder.glob("cells/run/*/*/*.json"))

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Keep the result of a cell in a file of its own."""
        run = new_row(cell, **without(result, ("history", "metrics")), **result.get("metrics", {}))
        curve = {name: run[name] for name in KEY} | result.get("history", {})
        file = self.file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"run": run, "curve": curve})

    def add(self) -> int:
        """Move all finished cells from their files into the tables; return how many there were.

        A cell that the tables have already must have the same settings and result, but for seconds and origin.

        Raises:
            ValueError: a cell contradicts its row, or is incomplete. Then no file changes.
        """
        files = sorted((self.folder / "cells").rglob("*.json"))
        for file in files:
            new = kept_in(file)
            result_of(new)  # complains if something is missing
            for table, row in ((self.runs, new.run), (self.curves, new.curve)):
                kept = table.rows.get(key_of(row))
                if kept is None:
                    table.put(row)
                elif changed := runs.differences(*(without(r, (*ORIGIN, "seconds")) for r in (kept, row))):
                    raise ValueError(f"{file} contradicts {table.file} ({changed}); delete one of the two")
        if files:
            self.curves.save()
            self.runs.save()
        for file in files:
            file.unlink()
        return len(files)

    def machines(self, cells: Iterable[Cell]) -> set[str]:
        """Return what the finished ones of some cells were trained with; results of two machines differ by rounding."""
        found = (self._find(cell.key) for cell in cells)
        return {f"torch {kept.run.get('torch')} ({kept.run.get('processor')})" for kept in found if kept}


def without(row: Mapping[str, Any], names: Iterable[str]) -> Row:
    """Return a row without some columns."""
    return {name: value for name, value in row.items() if name not in names}


def result_of(kept: Kept) -> dict[str, Any]:
    """Return the result of a cell as `train` gave it.

    Raises:
        ValueError: a value is missing.
    """
    run, curve, (file, curve_file) = kept
    key = key_of(run)
    result = part_of(run, ("val_recall_at_1", "seconds"), file, key)
    if "diverged" in run:
        result["diverged"] = run["diverged"]
    if run["stage"] == "run":
        result["metrics"] = part_of(run, METRICS, file, key)
    return {**result, "history": part_of(curve, CURVE, curve_file, key)}


def kept_in(file: Path) -> Kept:
    """Return what the file of a cell holds.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(file.read_text())
        run, curve = dict(content["run"]), dict(content["curve"])
        if key_of(run) != key_of(curve):
            raise ValueError(f"a curve of {name_of(key_of(curve))}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no result of this comparison: {error!r}") from None
    return Kept(run, curve, (file, file))

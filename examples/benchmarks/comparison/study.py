"""Results of a study: four tables, and the files of finished cells that are not in them yet."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from comparison.cells import Cell
from comparison.table import KEY, ORIGIN, REMEDY, Row, Table, name_of, origin, part_of
from pml_gca.utils import runs

METRICS = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "mean_average_precision_at_r", "r_precision")
CURVE = ("iterations", "seconds", "recall_at_1")
SEEN = ("val_recall_at_1", "observed", "hardness", "strength", "coefficients")
PANEL = ("embeddings", "labels", "synthetic", "synthetic_labels")


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
        """What was seen inside of some runs, see `comparison.probes`."""
        return Table(self.folder / "watched.csv", (*SEEN, "classes", "names", *PANEL))

    def file(self, cell: Cell) -> Path:
        """Return where the result of a cell waits to be added."""
        return self.folder / "cells" / cell.stage / cell.loss / cell.contender / f"{cell.number}.json"

    def read(self, cell: Cell, remedy: str = REMEDY) -> dict[str, Any] | None:
        """Return the result of a cell as `train` gave it; None if it is not done.

        Raises:
            ValueError: it has other settings, when the message advises `remedy`, or is incomplete.
        """
        found = self._find(cell.key)
        if found is None:
            return None
        run, curve, file = found
        return self._result(self.runs.checked(run, cell, file, remedy), curve, file)

    def load(self, stage: str, loss: str, contender: str, number: int) -> tuple[Cell, Row, dict[str, Any]]:
        """Return a cell that is done, what made it, and its result.

        Raises:
            ValueError: there is none, or it is incomplete.
        """
        key = (stage, loss, contender, number)
        found = self._find(key)
        if found is None:
            raise ValueError(f"{self} has no {name_of(key)}")
        run, curve, file = found
        made_by = {name: run[name] for name in ORIGIN if name in run}
        return Cell(*key, self.runs.settings(run)), made_by, self._result(run, curve, file)

    def _find(self, key: tuple[str, str, str, int]) -> tuple[Row, Row, Path] | None:
        """Return the rows of a cell in the tables of runs and curves, and the file they are from."""
        if key in self.runs.rows:
            return self.runs.rows[key], self.curves.rows.get(key, {}), self.runs.file
        file = self.file(Cell(*key, {}))
        return (*rows_of(file), file) if file.exists() else None

    def _result(self, run: Row, curve: Row, file: Path) -> dict[str, Any]:
        key = [run[name] for name in KEY]
        result = part_of(run, ("val_recall_at_1", "seconds"), file, key)
        result |= {name: run[name] for name in ("diverged",) if name in run}
        result["history"] = part_of(curve, CURVE, self.curves.file if file == self.runs.file else file, key)
        return {**result, "metrics": part_of(run, METRICS, file, key)} if run["stage"] == "run" else result

    def has_runs(self) -> bool:
        """Say whether any run is done, of whatever settings."""
        return any(key[0] == "run" for key in self.runs.rows) or any(self.folder.glob("cells/run/*/*/*.json"))

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Keep the result of a cell in a file of its own."""
        key = dict(zip(KEY, cell.key, strict=True))
        values = {name: value for name, value in result.items() if name not in ("history", "metrics")}
        run = {**key, **cell.settings, **origin(), **values, **result.get("metrics", {})}
        file = self.file(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(file, {"run": run, "curve": {**key, **result.get("history", {})}})

    def add(self) -> int:
        """Move all finished cells from their files into the tables; return how many there were.

        A cell that the tables have already must have the same settings and result, but for seconds and origin.

        Raises:
            ValueError: a cell contradicts its row, or is incomplete. Then no file changes.
        """
        files = sorted((self.folder / "cells").rglob("*.json"))
        for file in files:
            run, curve = rows_of(file)
            self._result(run, curve, file)
            for table, row in ((self.runs, run), (self.curves, curve)):
                key = tuple(row[name] for name in KEY)
                kept = table.rows.get(key)
                if kept is None:
                    table.put(row)
                elif changed := runs.differences(*(but(r, (*ORIGIN, "seconds")) for r in (kept, row))):
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
        return {f"torch {its[0].get('torch')} ({its[0].get('processor')})" for its in found if its}


def but(row: Row, names: Iterable[str]) -> Row:
    """Return a row without some columns."""
    return {name: value for name, value in row.items() if name not in names}


def rows_of(file: Path) -> tuple[Row, Row]:
    """Return the rows that the file of a cell holds for the tables of runs and curves.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(file.read_text())
        run, curve = dict(content["run"]), dict(content["curve"])
        for row in (run, curve):
            tuple(row[name] for name in KEY)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no result of this comparison: {error!r}") from None
    return run, curve

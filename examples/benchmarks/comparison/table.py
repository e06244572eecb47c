"""A table of results: a CSV file with a row for each cell."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import pml_gca
from comparison.cells import Cell
from pml_gca.utils import runs
from pml_gca.utils.files import write_atomically

Row = dict[str, Any]

KEY = ("stage", "loss", "contender", "number")
ORIGIN = ("version", "torch", "processor")  # recorded, never compared
REMEDY = "choose another --out"

csv.field_size_limit(2**31 - 1)  # a panel's embeddings are one field


def as_text(value: Any) -> str:
    """Return a field's text: a string as it is, unless it is empty or reads as JSON; JSON for everything else."""
    return value if isinstance(value, str) and value and as_value(value) == value else json.dumps(value)


def as_value(text: str) -> Any:
    """Return the value that `as_text` wrote, exactly."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def name_of(key: Iterable[Any]) -> str:
    """Return a cell's name for messages, such as "run n_pairs gca 0"."""
    return " ".join(str(part) for part in key)


def part_of(row: Row, names: Iterable[str], file: Path, key: Iterable[Any]) -> dict[str, Any]:
    """Return some values of a row.

    Raises:
        ValueError: it lacks one; the message names `file` and `key`.
    """
    if missing := [name for name in names if name not in row]:
        raise ValueError(f"{file}: {name_of(key)} has no {', '.join(missing)}")
    return {name: row[name] for name in names}


def key_of(row: Row) -> tuple[Any, ...]:
    """Return the key of a row."""
    return tuple(row[name] for name in KEY)


def new_row(cell: Cell, **values: Any) -> Row:
    """Return a row for a result made here and now; rounding and seconds depend on the versions and the processor."""
    device = torch.device(cell.inputs.device)
    on_gpu = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability()
    made_by = (pml_gca.__version__, torch.__version__, processor)
    key = zip((*KEY, *ORIGIN), (*cell.key, *made_by), strict=True)
    return {**cell.settings, **dict(key), **values}


class Table:
    """A CSV file with a row for each cell: the key, its settings, what made the result, and the result.

    A blank field means that the row has no such value.

    Args:
        file: read if it exists.
        values: columns of the result. All columns but these, the key's and the origin's are settings.

    Raises:
        ValueError: the file is not such a table.
    """

    def __init__(self, file: Path, values: tuple[str, ...]) -> None:
        self.file, self.values = file, values
        self.rows: dict[tuple[Any, ...], Row] = {}
        if not file.exists():
            return
        with file.open(newline="") as lines:
            reader = csv.reader(lines, strict=True)
            try:
                head = next(reader)
                for fields in reader:
                    row = {name: as_value(text) for name, text in zip(head, fields, strict=True) if text}
                    if key_of(row) in self.rows:
                        raise ValueError(f"{name_of(key_of(row))} is there twice")
                    self.put(row)
            except (csv.Error, KeyError, StopIteration, TypeError, ValueError) as error:
                raise ValueError(f"{file}, line {reader.line_num} is no row of a table of results: {error!r}") from None

    def find(self, cell: Cell, remedy: str = REMEDY) -> Row | None:
        """Return the row of a cell, or None.

        Raises:
            ValueError: it has other settings; the message advises `remedy`.
        """
        row = self.rows.get(cell.key)
        return None if row is None else self.checked(row, cell, self.file, remedy)

    def checked(self, row: Row, cell: Cell, file: Path, remedy: str = REMEDY) -> Row:
        """Return the row if it has the settings of the cell.

        Raises:
            ValueError: see `find`.
        """
        if changed := runs.differences(self.settings(row), cell.settings):
            raise ValueError(f"{file}: {name_of(cell.key)} has other settings ({changed}); {remedy}")
        return row

    def settings(self, row: Row) -> dict[str, Any]:
        """Return the settings of a row."""
        return {name: value for name, value in row.items() if name not in (*KEY, *ORIGIN, *self.values)}

    def put(self, row: Row) -> None:
        """Add a row, or replace the one of the same cell. `save` writes it."""
        self.rows[key_of(row)] = row

    def save(self) -> None:
        """Write the file, rows sorted by their keys."""
        there = {name for row in self.rows.values() for name in row}
        settings = sorted(there.difference(KEY, ORIGIN, self.values))
        columns = [name for name in (*KEY, *settings, *ORIGIN, *self.values) if name in there]

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                for key in sorted(self.rows):
                    row = self.rows[key]
                    writer.writerow([as_text(row[name]) if name in row else "" for name in columns])

        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, write)

"""Cells of the comparison: what one training run is, and the file that holds what came of it."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import pml_gca
from pml_gca.utils import runs

FORMAT = 1  # of result files. Raise it when one of an older package can no longer stand beside a new one.
NEEDED = {"tune": ("val_recall_at_1",), "run": ("val_recall_at_1", "history", "metrics")}  # of a result, by stage


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        stage: ``"tune"``, judged on validation classes, or ``"run"``, on test classes.
        loss: name in ``pml_gca.losses.NAMED_LOSSES``.
        contender: name in ``contenders``.
        number: of the trial, or the seed.
        options: what is tuned of the contender, and ``lr``.
        settings: what all cells have in common.
        recipe: what the contender is, see `Contender`.
    """

    stage: str
    loss: str
    contender: str
    number: int
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Of weights, batches and distortions. All trials have one seed, which no run has."""
        return self.number if self.stage == "run" else 1000

    def file(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / self.stage / self.loss / self.contender / f"{self.number}.json"


def read(cell: Cell, folder: Path, remedy: str = "choose another --out") -> dict[str, Any] | None:
    """What came of a cell; None if it has not been run.

    Raises:
        ValueError: the file is of another format or setting, when the message advises ``remedy``, or incomplete.
    """
    file = cell.file(folder)
    if not file.exists():
        return None
    return part_of(read_of(identity(cell), file, remedy), "result", NEEDED[cell.stage], file)


def identity(cell: Cell) -> dict[str, Any]:
    """What a file is kept under: all that its result depends on, but for the machine."""
    return asdict(cell)


def provenance() -> dict[str, Any]:
    """What a file says of its origin. A result outlives the package's version, until ``FORMAT`` changes, too."""
    return {"format": FORMAT, "version": pml_gca.__version__, "machine": machine()}


def read_of(wanted: Mapping[str, Any], file: Path, remedy: str = "choose another --out") -> dict[str, Any]:
    """The content of a file whose ``cell`` is as wanted.

    Args:
        wanted: as from `identity`.
        file: that exists.
        remedy: what the message advises where it is not.

    Raises:
        ValueError: it is of another format or setting, or no such file.
    """
    content = content_of(file)
    found = {"format": content["format"], **content["cell"]}
    if changed := runs.differences(found, {"format": FORMAT, **wanted}):
        raise ValueError(f"{file} is of another version or setting ({changed}); {remedy}")
    return content


def content_of(file: Path) -> dict[str, Any]:
    """What a file of the comparison holds: ``cell``, ``format``, ``version`` and more.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        kept = dict(content["cell"])
        dict(content.get("machine", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no result of this comparison: {error!r}") from None
    # The first files have the version in their cell, or, those of times, in the cell of each contender.
    holders = [kept, *(part for part in kept.values() if isinstance(part, dict) and "contender" in part)]
    versions = [holder.pop("version") for holder in holders if "version" in holder]
    return {"format": 1, "version": versions[0] if versions else None, **content, "cell": kept}


def part_of(content: Mapping[str, Any], name: str, keys: Iterable[str], file: Path) -> dict[str, Any]:
    """What a file of that content holds under a name.

    Raises:
        ValueError: it holds nothing there, or not all of the keys.
    """
    part = content.get(name)
    missing = [key for key in keys if not isinstance(part, dict) or key not in part]
    if not isinstance(part, dict) or missing:
        raise ValueError(f"{file} is no result of this comparison: {name!r} has no {', '.join(missing) or 'content'}")
    return part


def machines(cells: Iterable[Cell], folder: Path) -> set[str]:
    """What those cells that are done were trained with; results of two differ by rounding, which training enlarges."""
    done = [file for cell in cells if (file := cell.file(folder)).exists()]
    found = (content_of(file).get("machine", {}) for file in done)
    return {f"torch {its.get('torch')} ({its.get('processor')})" for its in found}


def load(file: Path) -> tuple[Cell, dict[str, Any], dict[str, Any]]:
    """The cell that a file holds, the version and machine that trained it, and what came of it.

    Raises:
        ValueError: it is no such file, or of another format.
    """
    content = content_of(file)
    if content["format"] != FORMAT:
        raise ValueError(f"{file} is of format {content['format']}, this is format {FORMAT}")
    try:
        trained_with = {"pml_gca": content["version"], **content["machine"]}
        cell = Cell(**content["cell"])
        needed = NEEDED[cell.stage]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no result of this comparison: {error!r}") from None
    return cell, trained_with, part_of(content, "result", needed, file)


def write(cell: Cell, folder: Path, result: Mapping[str, Any]) -> None:
    """Keep what came of a cell."""
    file = cell.file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(file, {"cell": identity(cell), **provenance(), "result": result})


def machine() -> dict[str, str]:
    """What rounding and seconds depend on."""
    return {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}


def trial_options(contender: str, loss: str, tuned: Mapping[str, tuple[Any, ...]], count: int) -> list[dict[str, Any]]:
    """``count`` different choices of what is tuned, or all there are, drawn by the names alone.

    As long as no choice comes up twice, which is then left out, each value of a hyperparameter is chosen as often as
    every other of it, or once more: few trials are not spent on one learning rate.
    """
    names = sorted(tuned)
    count = min(count, math.prod(len(values) for values in tuned.values()))
    chosen: list[dict[str, Any]] = []
    drawn = 0
    while len(chosen) < count:
        options = {}
        for name in names:
            cycle, place = divmod(drawn, len(tuned[name]))
            order = random.Random(f"{loss}:{contender}:{name}:{cycle}").sample(tuned[name], len(tuned[name]))
            options[name] = order[place]
        if options not in chosen:
            chosen.append(options)
        drawn += 1
    return chosen

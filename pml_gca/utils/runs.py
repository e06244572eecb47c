"""Resumable training runs: seeds, state, and folders that never mix settings."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import write_atomically, write_json

MAX_SHOWN = 8  # differences in an error message
MAY_GROW = ("epochs",)
"""Settings that may be larger when runs are resumed."""


def set_seed(seed: int) -> None:
    """Seed torch, Python, and NumPy's global generator, which PML's samplers draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - see above


def seed_of_epoch(seed: int, epoch: int) -> int:
    """Return the seed of one epoch. A resumed run sets it as well, and draws the same numbers as an unbroken one."""
    return 1_000_003 * seed + epoch


def save_state(path: Path, parts: Mapping[str, Any], **content: Any) -> None:
    """Save the state dicts of `parts`, and further content that `torch.load(weights_only=True)` can read.

    Raises:
        OSError: the file cannot be written; an older one is as it was.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    write_atomically(path, lambda temporary: torch.save({**content, "state": state}, temporary))


def read_content(path: Path) -> dict[str, Any]:
    """Return everything that `save_state` wrote: the further content, and all state dicts under `"state"`."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Load the state dicts that `save_state` wrote into `parts`, and return the further content.

    Raises:
        ValueError: the file lacks one of the parts, or holds a state under its name that does not fit.
    """
    content = read_content(path)
    state = content.pop("state")
    missing = [name for name in parts if name not in state]
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}, only {', '.join(state)}")
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} holds another {name}: {error}") from error
    return content


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], *, may_grow: Sequence[str] = ()) -> str:
    """Say how `found` differs from `expected`. Return "" if they are equal as JSON.

    A number whose name is in `may_grow` may be larger in `expected`.
    """
    found, expected = (json.loads(json.dumps(settings, default=str)) for settings in (found, expected))
    grown = [name for name in may_grow if name in found and name in expected and found[name] < expected[name]]
    names = [*expected, *(name for name in found if name not in expected)]
    names = [name for name in names if name not in grown]
    changed = [f"{n} is {expected.get(n)}, was {found.get(n)}" for n in names if expected.get(n) != found.get(n)]
    more = f"; and {len(changed) - MAX_SHOWN} more" if len(changed) > MAX_SHOWN else ""
    return "; ".join(changed[:MAX_SHOWN]) + more


def claim_folder(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs: Sequence[str] = ("*",),
) -> None:
    """Create `folder` for runs of these settings, or check that its runs have the same settings.

    Args:
        folder: created if it does not exist.
        settings: kept in `settings.json`, and compared with the settings found there. Only `epochs` may be larger: the
            runs are then extended.
        resume: continue the runs in the folder.
        overwrite: delete the runs in the folder.
        runs: patterns that match the names of the runs' subfolders.

    Raises:
        ValueError: the folder holds runs of other or unknown settings, or it holds runs while neither `resume`
            nor `overwrite` is given; or there is a file of this name.
        OSError: the folder cannot be created, or its runs cannot be deleted.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a folder for results is needed; choose another --out")
    file = folder / "settings.json"
    held = [path for pattern in runs for path in folder.glob(pattern) if path.is_dir()]
    if overwrite and held and file.exists():
        for path in held:
            shutil.rmtree(path)
        held = []
    if held:
        if not file.exists():
            raise ValueError(f"{folder} holds {held[0].name}, a run of unknown settings; choose another --out")
        changed = differences(json.loads(file.read_text()), settings, may_grow=MAY_GROW)
        if changed:
            raise ValueError(f"{folder} holds runs of other settings ({changed}); choose another --out")
        if not resume:
            raise ValueError(
                f"{folder} holds runs already; give --resume to continue them, or --overwrite or another --out"
            )
    elif resume:
        print(f"Nothing to resume in {folder}: starting from the beginning")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, json.loads(json.dumps(settings, default=str)))


class TrainingRun:
    """A training run in a folder of its own. It resumes after its last complete epoch.

    `checkpoint.pt` holds the state after that epoch, `result.json` the result of a finished run. On a CPU a
    resumed run ends with exactly the result of an unbroken one; on a GPU the two differ by rounding. A finished run can
    be extended to more epochs.

    >>> import tempfile
    >>> from torch import nn
    >>> temporary, parts = tempfile.TemporaryDirectory(), {"model": nn.Linear(2, 2)}
    >>> folder = Path(temporary.name)
    >>> run = TrainingRun(folder, "example", seed=0)
    >>> history = run.restore(parts).get("history", [])
    >>> for epoch in run.epochs(last=2):
    ...     history.append(0.1 * epoch)  # train here
    ...     run.save(parts, history=history)
    example: epoch 1 of 2
    example: epoch 2 of 2
    >>> TrainingRun(folder, "example", seed=0).restore(parts)
    example: resuming after epoch 2
    {'history': [0.1, 0.2]}
    >>> temporary.cleanup()

    Args:
        folder: of the run; created when there is something to save.
        name: printed with each progress line.
        seed: each epoch gets a seed of its own, derived from this one.
        identity: settings, as JSON, that must not change between a stopped run and its resumption; only `epochs` may
            grow.

    Attributes:
        epoch: the last complete epoch, or the one that is being trained; 0 before the first.
    """

    def __init__(self, folder: str | Path, name: str, *, seed: int, identity: Mapping[str, Any] | None = None) -> None:
        self.folder, self.name, self.seed = Path(folder), name, seed
        self.identity = dict(identity or {})
        self.checkpoint_file, self.result_file = self.folder / "checkpoint.pt", self.folder / "result.json"
        self.epoch = 0

    def read_result(self, last: int = 0) -> dict[str, Any] | None:
        """Return the result of a finished run; None if the run is not finished.

        Args:
            last: the epoch to train to. A run that finished before it counts as not finished, and goes on.

        Raises:
            ValueError: the result belongs to a run of another identity.
        """
        if not self.result_file.exists():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        self.check_identity(result.get("identity", {}), self.result_file)
        trained = result.get("trained_epochs")
        if trained is None and self.checkpoint_file.exists():  # of a version that did not write it
            trained = read_content(self.checkpoint_file)["epoch"]
        if trained is not None and trained < last:
            print(f"{self.name}: finished before with {trained} epochs, goes on to {last}")
            return None
        print(f"{self.name}: finished before")
        return result

    def restore(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Load the last complete epoch into `parts`. Return what else was saved; empty if there is no checkpoint.

        Args:
            parts: everything with a state, by name: models, optimizers, losses, samplers.

        Raises:
            ValueError: the checkpoint belongs to a run of another identity, or does not fit `parts`.
        """
        if not self.checkpoint_file.exists():
            return {}
        self.check_identity(json.loads(read_content(self.checkpoint_file)["identity"]), self.checkpoint_file)
        content = load_state(self.checkpoint_file, parts)
        self.epoch = content.pop("epoch")
        del content["identity"]
        print(f"{self.name}: resuming after epoch {self.epoch}")
        return content

    def epochs(self, last: int) -> Iterator[int]:
        """Yield the epochs left to train, up to `last`. Announce each one and set its seed."""
        while self.epoch < last:
            self.epoch += 1
            print(f"{self.name}: epoch {self.epoch} of {last}")
            set_seed(seed_of_epoch(self.seed, self.epoch))
            yield self.epoch

    def save(self, parts: Mapping[str, Any], **content: Any) -> None:
        """Save the epoch that is complete now.

        Args:
            parts: as in `restore`.
            content: numbers, strings and lists for `restore` to return.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        save_state(self.checkpoint_file, parts, identity=json.dumps(self.identity), epoch=self.epoch, **content)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result, which ends the run, and return it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**({"identity": self.identity} if self.identity else {}), "trained_epochs": self.epoch, **result}
        write_json(self.result_file, content)
        return content

    def check_identity(self, found: Mapping[str, Any], file: Path) -> None:
        """Raise ValueError if a file belongs to a run of another identity."""
        changed = differences(found, self.identity, may_grow=MAY_GROW)
        if changed:
            raise ValueError(f"{file} is of another run ({changed}); choose another folder")

"""Training runs that can be killed at any time, go on to the same end, and are never mixed up."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_SHOWN = 8  # differences in an error message


def set_seed(seed: int) -> None:
    """Seed torch, and NumPy's global generator, from which PML's samplers draw."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - see above


def seed_of_epoch(seed: int, epoch: int) -> int:
    """A seed of each epoch's own: what a resumed run draws is what an unbroken one draws."""
    return 1_000_003 * seed + epoch


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """A run that is killed leaves the file as it was before, or whole."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write atomically, readably."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


def save_state(path: Path, parts: Mapping[str, Any], **content: Any) -> None:
    """State dicts of ``parts``, and further content that ``torch.load(weights_only=True)`` can read."""
    state = {name: part.state_dict() for name, part in parts.items()}
    write_atomically(path, lambda temporary: torch.save({**content, "state": state}, temporary))


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Restore what :func:`save_state` wrote into ``parts``; returns the further content.

    Raises:
        ValueError: the file lacks one of the parts.
    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    state = content.pop("state")
    missing = [name for name in parts if name not in state]
    if missing:
        raise ValueError(f"{path} holds no {', '.join(missing)}, only {', '.join(state)}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return content


def claim_folder(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs: Iterable[str] = (),
) -> None:
    """Make ``folder`` one for runs of these settings, or find that it is.

    Args:
        folder: created if it is not there.
        settings: compared as text with those that the folder was made for, kept in ``settings.json``.
        resume: go on with the runs that it holds.
        overwrite: delete them, that is, the subfolders ``runs``.
        runs: see above.

    Raises:
        ValueError: the folder holds runs of other settings, or runs though neither ``resume`` nor ``overwrite``.
    """
    text = {name: str(value) for name, value in settings.items()}
    file = folder / "settings.json"
    if overwrite and file.exists():
        for run in runs:
            shutil.rmtree(folder / run, ignore_errors=True)
        file.unlink()
    if file.exists() and any(entry != file for entry in folder.iterdir()):  # else nothing has come of it
        before = json.loads(file.read_text())
        names = [*text, *(name for name in before if name not in text)]
        changed = [f"{n} is {text.get(n)}, was {before.get(n)}" for n in names if text.get(n) != before.get(n)]
        if changed:
            shown = "; ".join(changed[:MAX_SHOWN]) + (
                f"; and {len(changed) - MAX_SHOWN} more" * (len(changed) > MAX_SHOWN)
            )
            raise ValueError(f"{folder} holds runs of other settings ({shown}); choose another --out")
        if not resume:
            raise ValueError(
                f"{folder} holds runs already; give --resume to go on with them, or --overwrite or another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, text)

"""Training runs that can be killed at any time, go on to the same end, and are never mixed up."""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_SHOWN = 8  # differences in an error message


def set_seed(seed: int) -> None:
    """Seed torch, Python, and NumPy's global generator, from which PML's samplers draw."""
    torch.manual_seed(seed)
    random.seed(seed)
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


def read_content(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, state and all."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Restore what `save_state` wrote into ``parts``; returns the further content.

    Raises:
        ValueError: the file lacks one of the parts, or holds another's state under its name.
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


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What is not as expected, in words; empty if everything is. Values are compared as JSON has them."""
    found, expected = (json.loads(json.dumps(settings, default=str)) for settings in (found, expected))
    names = [*expected, *(name for name in found if name not in expected)]
    changed = [f"{n} is {expected.get(n)}, was {found.get(n)}" for n in names if expected.get(n) != found.get(n)]
    more = f"; and {len(changed) - MAX_SHOWN} more" if len(changed) > MAX_SHOWN else ""
    return "; ".join(changed[:MAX_SHOWN]) + more


def claim_folder(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    runs: Sequence[str] = ("*",),
) -> None:
    """Make ``folder`` one for runs of these settings, or find that it is.

    Args:
        folder: created if it is not there.
        settings: compared with those that the folder was made for, kept in ``settings.json``.
        resume: go on with the runs that it holds.
        overwrite: delete them.
        runs: what the subfolders of runs are called, as patterns.

    Raises:
        ValueError: the folder holds runs of other or unknown settings, or runs though neither ``resume`` nor
            ``overwrite``.
        OSError: it cannot be made, or its runs not be deleted.
    """
    file = folder / "settings.json"
    held = [path for pattern in runs for path in folder.glob(pattern) if path.is_dir()]
    if overwrite and held and file.exists():
        for path in held:
            shutil.rmtree(path)
        held = []
    if held:
        if not file.exists():
            raise ValueError(f"{folder} holds {held[0].name}, of unknown settings; choose another --out")
        changed = differences(json.loads(file.read_text()), settings)
        if changed:
            raise ValueError(f"{folder} holds runs of other settings ({changed}); choose another --out")
        if not resume:
            raise ValueError(
                f"{folder} holds runs already; give --resume to go on with them, or --overwrite or another --out"
            )
    elif resume:
        print(f"Nothing to go on with in {folder}: starting anew")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, json.loads(json.dumps(settings, default=str)))

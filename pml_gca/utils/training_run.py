"""One training run that can be stopped at any time and resumed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import runs


class TrainingRun:
    """A training run in a folder of its own. It resumes after its last complete epoch.

    `checkpoint.pt` holds the state after that epoch, `result.json` the result of a finished run. On a CPU a
    resumed run ends with exactly the result of an unbroken one; on a GPU the two differ by rounding.

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
        folder: of the run.
        name: printed with each progress line.
        seed: each epoch gets a seed of its own, derived from this one.
        identity: settings, as JSON, that must not change between a stopped run and its resumption.

    Attributes:
        epoch: the last complete epoch, or the one that is being trained; 0 before the first.
    """

    def __init__(self, folder: Path, name: str, *, seed: int, identity: Mapping[str, Any] | None = None) -> None:
        self.folder, self.name, self.seed = folder, name, seed
        self.identity = dict(identity or {})
        self.checkpoint_file, self.result_file = folder / "checkpoint.pt", folder / "result.json"
        self.epoch = 0

    def read_result(self) -> dict[str, Any] | None:
        """Return the result of a finished run; None if the run is not finished.

        Raises:
            ValueError: the result belongs to a run of another identity.
        """
        if not self.result_file.exists():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        self.check_identity(result.get("identity", {}), self.result_file)
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
        self.check_identity(json.loads(runs.read_content(self.checkpoint_file)["identity"]), self.checkpoint_file)
        content = runs.load_state(self.checkpoint_file, parts)
        self.epoch = content.pop("epoch")
        del content["identity"]
        print(f"{self.name}: resuming after epoch {self.epoch}")
        return content

    def epochs(self, last: int) -> Iterator[int]:
        """Yield the epochs left to train, up to `last`. Announce each one and set its seed."""
        while self.epoch < last:
            self.epoch += 1
            print(f"{self.name}: epoch {self.epoch} of {last}")
            runs.set_seed(runs.seed_of_epoch(self.seed, self.epoch))
            yield self.epoch

    def save(self, parts: Mapping[str, Any], **content: Any) -> None:
        """Save the epoch that is complete now.

        Args:
            parts: as in `restore`.
            content: numbers, strings and lists that `restore` shall return.
        """
        runs.save_state(self.checkpoint_file, parts, identity=json.dumps(self.identity), epoch=self.epoch, **content)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the result, which ends the run, and return it."""
        content = {"identity": self.identity, **result} if self.identity else dict(result)
        runs.write_json(self.result_file, content)
        return content

    def check_identity(self, found: Mapping[str, Any], file: Path) -> None:
        """Raise ValueError if a file belongs to a run of another identity."""
        changed = runs.differences(found, self.identity)
        if changed:
            raise ValueError(f"{file} is of another run ({changed}); choose another folder")

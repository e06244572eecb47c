"""A cell of the comparison: one training run, and the choices of hyperparameters that the trials try."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comparison.inputs import Inputs


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        stage: `"tune"` for a trial, or `"screen"` for a seed, both judged on validation classes alone; or `"run"`,
            judged on test classes.
        loss: name in `pml_gca.losses.NAMED_LOSSES`.
        contender: name in `comparison.contenders.ALL`.
        number: of the trial, or of the seed.
        settings: everything else that the result depends on, except for the machine: one column of the table each.
        inputs: where it finds its data.
    """

    stage: str
    loss: str
    contender: str
    number: int
    settings: Mapping[str, Any]
    inputs: Inputs = field(default=Inputs(), compare=False)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The key that the result is filed under."""
        return self.stage, self.loss, self.contender, self.number

    @property
    def seed(self) -> int:
        """Seed of weights, batches and distortions. All trials share one seed, which no other cell has."""
        return {"run": self.number, "screen": 2000 + self.number}.get(self.stage, 1000)


def trial_options(contender: str, loss: str, tuned: Mapping[str, tuple[Any, ...]], count: int) -> list[dict[str, Any]]:
    """Return `count` different choices of hyperparameters, or all if there are fewer; the names alone decide which.

    Values of a hyperparameter take turns, which spreads few trials over all learning rates. Repeated choices are left
    out, which may disturb the balance a little.
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

"""Run all cases in each process; a process returns its failures.

python -m helpers.gathering.program FOLDER WORLD...
"""

import traceback
from pathlib import Path

from helpers.gathering import beside, refusals, remembering, uses, values, wrapper
from helpers.processes import join, start

CASES = {
    2: (*values.CASES, *uses.CASES, *beside.CASES, *refusals.CASES, *wrapper.CASES, *remembering.CASES),
    3: (values.losses_everywhere, uses.in_a_group, refusals.bad_input, *wrapper.CASES, *remembering.CASES),
    4: (values.losses_everywhere, values.optimizers),
}


def run(rank: int, world: int, folder: Path) -> list[str]:
    join(rank, world, folder)
    failures = []
    for case in CASES[world]:
        try:
            failures += [f"{case.__name__}: {failure}" for failure in case(rank, world)]
        except Exception:
            failures.append(f"{case.__name__}: {traceback.format_exc()}")
            break  # the others wait in another place
    return failures


if __name__ == "__main__":
    start(run)

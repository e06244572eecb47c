"""Run all cases in each process; a process returns its failures.

python -m helpers.sharding.program FOLDER WORLD...
"""

import traceback
from pathlib import Path

import torch.distributed as dist

from helpers.processes import join, start
from helpers.sharding import counts, values

CASES = (*values.CASES, *counts.CASES)


def run(rank: int, world: int, folder: Path) -> list[str]:
    join(rank, world, folder)
    failures = []
    for case in CASES:
        try:
            failures += [f"{case.__name__}: {failure}" for failure in case(rank, world)]
        except Exception:
            failures.append(f"{case.__name__}: {traceback.format_exc()}")
            break  # the others wait in another place
    dist.destroy_process_group()
    return failures


if __name__ == "__main__":
    start(run)

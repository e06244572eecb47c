"""Start a program of this folder in several processes on the CPU, joined by gloo."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1]
TIMEOUT = 300  # seconds; a hang is a failure


def launch(program: str, folder: Path, *worlds: int) -> dict[int, list[Any]]:
    """Run `python -m helpers.PROGRAM`, which calls `start`, once for each number of processes.

    It is a new process: one that has not started threads before it forks.

    Returns:
        What each process returned, by their number.
    """
    paths = os.pathsep.join(filter(None, (str(TESTS), *sys.path)))
    process = subprocess.Popen(
        [sys.executable, "-m", f"helpers.{program}", str(folder), *map(str, worlds)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=TIMEOUT)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return {
        world: [torch.load(folder / f"{world}" / f"{rank}.pt", weights_only=False) for rank in range(world)]
        for world in worlds
    }


def start(function: Callable[[int, int, Path], Any]) -> None:
    """Fork the processes of `launch`, call `function(rank, world, folder)` in each, and keep what it returns."""
    import torch._dynamo  # DistributedDataParallel imports it; once is faster than in each process

    torch.set_num_threads(1)
    for world in map(int, sys.argv[2:]):
        folder = Path(sys.argv[1]) / f"{world}"
        folder.mkdir()
        torch.multiprocessing.start_processes(_run, (function, world, folder), nprocs=world, start_method="fork")


def _run(rank: int, function: Callable[[int, int, Path], Any], world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(function(rank, world, folder), folder / f"{rank}.pt")
    os._exit(0)  # without taking the process group down: older releases of torch may hang there


def once(compute: Callable[[], Any]) -> Any:
    """Return what the first process computes, in every process: what one process would find is computed once."""
    found = [compute() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def join(rank: int, world: int, folder: Path) -> None:
    """Join the process group of all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)

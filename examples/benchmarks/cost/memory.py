"""The memory of a step, measured in a process of its own: otherwise one step reuses what another left behind."""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cost.case import Case
from cost.timing import captured
from cost.workload import Workload


def in_fresh_process(case: Case, script: Path, option: str = "--probe") -> dict[str, Any]:
    """Run `probe`, or `first_step`, in a new process, and return what it found.

    Args:
        case: what to measure.
        script: started with the option and the case as JSON; prints the result as JSON in its last line.
        option: `"--probe"` or `"--first-step"`.

    Returns:
        The result, or `{"error": reason}` if the process failed or was killed.
    """
    command = [sys.executable, str(script), option, json.dumps(asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode < 0:
        return {"error": f"killed by signal {-process.returncode}, probably because it ran out of memory"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["failed"])[-1]}
    found: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return found


def probe(case: Case) -> dict[str, Any]:
    """Measure the memory of a step; for a CUDA graph, find out what can be captured.

    Returns:
        `{"peak_bytes": ...}`, or `{"captured": [...]}` with the names of `Workload`'s methods that can be captured,
        and `"error"` if one of them cannot.
    """
    torch.set_num_threads(case.threads)
    if not case.cuda_graph:
        return {"peak_bytes": peak_bytes(case)}
    names: list[str] = []
    for name in ("propagation", "step"):  # a failed capture may break the process, so try the more likely one first
        try:
            captured(getattr(Workload(case), name))()
            torch.cuda.synchronize()
        except RuntimeError as error:
            return {"captured": names, "error": f"{name} cannot be captured: {str(error).splitlines()[0]}"}
        names.append(name)
    return {"captured": names}


def first_step(case: Case) -> dict[str, Any]:
    """Measure the first step of a process, with the building of the generator: `{"first_step": seconds}`."""
    torch.set_num_threads(case.threads)
    began = time.perf_counter()
    Workload(case).step()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return {"first_step": time.perf_counter() - began}


def peak_bytes(case: Case) -> int:
    """Return the bytes that a step needs in addition to parameters, optimizer state, libraries and the batch."""
    on_gpu = case.device == "cuda"
    work = Workload(case)
    # The first steps load libraries and create the optimizer's state. A small batch leaves little memory for reuse.
    if not on_gpu and not case.compile:
        work.set_batch(min(2 * case.samples_per_class, case.batch_size))
    for _ in range(2):
        work.step()
    work.set_batch(case.batch_size)
    gc.collect()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux only: reset the peak
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    work.step()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Return the resident memory of this process, now (`VmRSS`) or at its peak (`VmHWM`).

    Systems other than Linux report only the peak.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

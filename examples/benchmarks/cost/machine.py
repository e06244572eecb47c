"""The processor that computes."""

import contextlib
import platform
from pathlib import Path

import torch


def processor_name(device: str) -> str:
    """Return the name of the CPU or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_multiplies_bf16() -> bool:
    """Return whether this CPU has matrix or dot-product instructions for bfloat16."""
    checks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    if any(check is not None and check() for check in checks):
        return True
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text().split())
        return not words.isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})
    return False

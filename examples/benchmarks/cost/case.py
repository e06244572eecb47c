"""One way to compute a training step, and the processor that computes it."""

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Case:
    """One way to compute a step, with everything that a fresh process needs to compute it, too."""

    batch_size: int
    precision: str
    is_naive: bool = False
    edge_chunk_size: int | None = None
    compile: bool = False
    cuda_graph: bool = False
    classify_among: str = "all"
    device: str = "cpu"
    samples_per_class: int = 3
    embedding_size: int = 512
    num_layers: int = 2
    num_heads: int = 4
    num_classes: int = 100
    threads: int = 1

    @property
    def name(self) -> str:
        """The implementation and its options, without batch size and precision."""
        options = {
            f"chunks of {self.edge_chunk_size} edges": self.edge_chunk_size is not None,
            "compiled": self.compile,
            "CUDA graph": self.cuda_graph,
            "J_soft among the batch's classes": self.classify_among == "batch",
        }
        return "naive" if self.is_naive else ", ".join(["pml-gca", *(name for name, on in options.items() if on)])

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which torch computes in the precision of this case."""
        return arithmetic(self.precision, self.device)


@contextlib.contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Set torch to a precision: fp32, tf32, or bf16 and fp16 by autocast.

    The matrix products keep their setting afterwards; autocast ends with the context.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device, dtype, enabled=precision in ("bf16", "fp16")):
        yield


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

"""What a training step takes, and what the machine could do: the measurements behind step_cost.py."""

import contextlib
import ctypes
import gc
import importlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import naive
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import DotProductSimilarity
from torch import Tensor

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LEVEL = 4.0  # of both running means, so that synthetic negatives are pulled and count


@dataclass(frozen=True)
class Case:
    """One way to compute a step, with all that a fresh process must know to compute it."""

    batch_size: int
    precision: str
    is_naive: bool = False
    edge_chunk_size: int | None = None
    compile: bool = False
    cuda_graph: bool = False
    device: str = "cpu"
    samples_per_class: int = 3
    embedding_size: int = 512
    num_layers: int = 2
    num_heads: int = 4
    num_classes: int = 100
    threads: int = 1

    @property
    def name(self) -> str:
        """How it is computed, whatever batch and precision."""
        options = {
            f"chunks of {self.edge_chunk_size} edges": self.edge_chunk_size is not None,
            "compiled": self.compile,
            "CUDA graph": self.cuda_graph,
        }
        return "naive" if self.is_naive else ", ".join(["pml-gca", *(name for name, on in options.items() if on)])

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The precision's global settings, and autocast where it is one."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            yield


class Workload:
    """A generator, a batch and optimizers, ready to be timed.

    Args:
        case: what to set up.
        dropout: of the edge attention.
    """

    def __init__(self, case: Case, dropout: float = 0.1) -> None:
        torch.manual_seed(0)
        self.case = case
        self.generator = GlobalCorrelationGenerator(
            case.num_classes,
            case.embedding_size,
            num_layers=case.num_layers,
            num_heads=case.num_heads,
            dropout=dropout,
            edge_chunk_size=case.edge_chunk_size,
        ).to(case.device)
        if case.compile:
            self.generator.propagation.compile(fullgraph=True)
        # Neither side normalises, as in the paper.
        self.metric_loss = losses.NPairsLoss(distance=DotProductSimilarity(normalize_embeddings=False))
        self.loss = HardNegativeGenerationLoss(self.metric_loss, self.generator).to(case.device)
        for level in ("metric", "generator"):
            self.loss.levels[level].value.fill_(LEVEL)
        groups = self.generator.parameter_groups(lr=1.5e-4)

        def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(groups, weight_decay=1e-4, capturable=case.cuda_graph)

        self.optimizer = adamw(groups)
        self.naive_optimizers = adamw(groups[:1]), adamw(groups[1:])
        self.set_batch(case.batch_size)

    def set_batch(self, size: int) -> None:
        """Random embeddings of ``size`` samples, classes one after the other, and weights for their propagation."""
        case = self.case
        source = torch.Generator().manual_seed(size)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source).to(case.device)

        self.embeddings = draw(size, case.embedding_size).requires_grad_()
        self.labels = torch.arange(size, device=case.device) // case.samples_per_class
        self.logit_weights, self.node_weights = draw(size, case.num_classes), draw(size)
        self.channel_weights = draw(case.embedding_size)

    def propagation(self) -> None:
        """Forward and backward of one propagation; what follows it is the same for both and small."""
        leaf = self.embeddings.detach().requires_grad_()
        w = self.node_weights
        with self.case.arithmetic():
            if self.case.is_naive:
                logits, coefficients = naive.propagate(self.generator, leaf, self.labels)
                edge_weights = w[:, None] * w
            else:
                correlations = self.generator.propagation(leaf, self.labels)
                logits, coefficients = correlations.node_logits, correlations.coefficients
                first, second = correlations.pairs
                # An undirected edge has the weight of the two ordered ones.
                edge_weights = w[first] * w[second] * torch.where(first == second, 1, 2)
        per_edge = coefficients @ self.channel_weights.to(coefficients.dtype)
        value = (logits * self.logit_weights).sum() + (per_edge * edge_weights).sum()
        # Compiled, the first backward pass settles whether there may be a second, as the loss step needs.
        value.backward(retain_graph=self.case.compile)
        self.generator.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Everything that training with the generator adds to an iteration, optimizer included."""
        if self.case.is_naive:
            with self.case.arithmetic():
                naive.iteration(
                    self.generator,
                    self.embeddings,
                    self.labels,
                    self.metric_loss,
                    self.naive_optimizers,
                    levels=(LEVEL, LEVEL),
                )
        else:
            with self.case.arithmetic():
                loss = self.loss(self.embeddings, self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        self.generator.zero_grad(set_to_none=True)
        self.embeddings.grad = None


def trunk_step(case: Case, name: str, image_size: int) -> Callable[[], None]:
    """Forward and backward of a torchvision classification model on the case's batch of images."""
    torch.manual_seed(0)
    network = torchvision_models().get_model(name, weights=None).to(case.device).train()
    images = torch.randn(case.batch_size, 3, image_size, image_size, device=case.device)

    def step() -> None:
        with case.arithmetic():
            output = network(images)
        outputs = output if isinstance(output, tuple) else (output,)  # some have auxiliary classifiers
        torch.stack([o.float().mean() for o in outputs]).sum().backward()
        network.zero_grad(set_to_none=True)

    return step


def torchvision_models() -> Any:
    """``torchvision.models``, imported where it is needed only."""
    return importlib.import_module("torchvision.models")


def matrix_products(case: Case) -> tuple[Callable[[], None], int]:
    """The matrix products of an edge MLP, forward and backward, with nothing between; and their multiply-adds."""
    d = case.embedding_size
    limit = 4e12 if case.device == "cuda" else 2.5e10  # well below a second
    rows = min(case.batch_size * (case.batch_size + 1) // 2, max(1, int(limit / (24 * d * d))))
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    shapes = ((rows, d), (rows, 4 * d), (4 * d, d), (d, 4 * d))
    narrow, wide, expand, contract = (torch.randn(shape, device=case.device, dtype=dtype) for shape in shapes)

    factors = [(narrow, expand.t()), (wide, contract.t())]  # forward
    factors += [(narrow, contract), (wide, expand), (narrow.t(), wide), (wide.t(), narrow)]  # backward
    products = [a @ b for a, b in factors]

    def multiply() -> None:
        with torch.no_grad(), case.arithmetic():
            for (a, b), product in zip(factors, products, strict=True):
                torch.mm(a, b, out=product)

    return multiply, 24 * d * d * rows


def copy_bandwidth() -> float:
    """Bytes a second that a large copy on the GPU reads and writes."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 10, "cuda")["copy"]
    return 2 * source.nbytes / statistics.median(times)


def interleaved(
    tasks: Mapping[Any, Callable[[], Any]], repeats: int, device: str, progress: Callable[[Any], None] = lambda _: None
) -> dict[Any, list[float]]:
    """Seconds of each task, one of each per round, every other round backwards, after a round that is not counted.

    A task that finds no room beside the others has no times.
    """
    times: dict[Any, list[float]] = {name: [] for name in tasks}
    for repeat in range(-1, repeats):
        for name in list(times)[:: 1 if repeat % 2 else -1]:
            progress(name)
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            try:
                tasks[name]()
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                del times[name]
                continue
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """``work`` as a CUDA graph, to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(reads_from: Callable[[], None] = work) -> None:
        """The graph holds addresses, not tensors: it lives no longer than the work that owns these."""
        graph.replay()

    return replay


def deviation_from_fp32(case: Case) -> tuple[float, float]:
    """Largest difference of a coefficient, and relative difference of the loss, without dropout."""
    coefficients, totals = [], []
    for precision in ("fp32", case.precision):
        work = Workload(replace(case, precision=precision), dropout=0.0)
        with torch.no_grad(), work.case.arithmetic():
            coefficients.append(work.generator.propagation(work.embeddings, work.labels).coefficients.float())
        for _ in range(2):  # synthetic negatives count from the second on
            torch.manual_seed(1)
            with work.case.arithmetic():
                total = work.loss(work.embeddings, work.labels)
        totals.append(total.item())
    return (coefficients[0] - coefficients[1]).abs().max().item(), abs(totals[1] / totals[0] - 1)


# Everything below about memory runs in a process of its own: what one step leaves behind, the next would reuse.


def in_fresh_process(case: Case, script: Path) -> dict[str, Any]:
    """What `probe` finds; ``{"error": reason}`` if the process failed or was killed."""
    command = [sys.executable, str(script), "--probe", json.dumps(asdict(case))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode < 0:
        return {"error": f"killed by signal {-process.returncode}, likely for want of memory"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["failed"])[-1]}
    found: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return found


def probe(case: Case) -> dict[str, Any]:
    """``{"peak_bytes": ...}`` of a step; for a CUDA graph ``{"captured": [...]}``, what can be captured at all."""
    torch.set_num_threads(case.threads)
    if not case.cuda_graph:
        return {"peak_bytes": peak_bytes(case)}
    names: list[str] = []
    for name in ("propagation", "step"):  # a failed capture may leave the process unusable: the likelier one first
        try:
            captured(getattr(Workload(case), name))()
            torch.cuda.synchronize()
        except RuntimeError as error:
            return {"captured": names, "error": f"{name} cannot be captured: {str(error).splitlines()[0]}"}
        names.append(name)
    return {"captured": names}


def peak_bytes(case: Case) -> int:
    """Bytes that a step takes beyond what is there before: parameters, optimizer state, libraries, the batch."""
    on_gpu = case.device == "cuda"
    work = Workload(case)
    # The first steps load libraries and make the optimizer's state; with a small batch, little is left for reuse.
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
    with contextlib.suppress(OSError):  # Linux only: the peak begins anew
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    work.step()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Resident memory of this process, now (``VmRSS``) or at its peak (``VmHWM``); elsewhere than on Linux the peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def machine(device: str) -> str:
    """Name of the processor that computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has matrix or dot-product instructions for bfloat16."""
    checks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    if any(check is not None and check() for check in checks):
        return True
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text().split())
        return not words.isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})
    return False


def growth_exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log time over log batch size."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(s) for s in seconds]).slope

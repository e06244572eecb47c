"""One batch of everything, and what the whole will take."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_metric_learning.utils.inference import FaissKNN
from torch import nn
from torch.utils.data import Subset

from ..correlation.cost import StepCost
from ..datasets import Benchmark
from ..utils import runs
from ..utils.records import build_hooks
from .backbones import set_warm_up
from .checks import check_classes
from .evaluation import build_tester, quiet, run_tester
from .experiment import build_sampler
from .options import Options
from .parts import Parts, build_parts
from .recipes import Recipe

SEARCHED = 512  # queries, to time the search
BYTES_OF_A_NEIGHBOUR = 40  # its distance, index and label, and what they are copied and compared to


@dataclass(frozen=True)
class DryRun:
    """What a run was seen to need, and will.

    Attributes:
        load_seconds: to load a training batch, by one process.
        step_seconds: of a training iteration, the loading not counted.
        embed_seconds: per image, to load and embed it in evaluation.
        search_seconds: of one search for the neighbours of all test images.
        iterations: of an epoch.
        hours: of all epochs and evaluations, of one seed.
        peak_bytes: most memory in use for a training batch; of the GPU, if there is one, else of the process.
        search_bytes: that the search for neighbours takes in main memory, estimated.
        step_cost: of the generator, if there is one.
    """

    load_seconds: float
    step_seconds: float
    embed_seconds: float
    search_seconds: float
    iterations: int
    hours: float
    peak_bytes: int
    search_bytes: int
    step_cost: StepCost | None

    def __str__(self) -> str:
        peak = f"{self.peak_bytes / 1e9:.1f} GB" if self.peak_bytes else "not known here"
        lines = [
            f"an iteration: {self.step_seconds:.2f} s, and {self.load_seconds:.2f} s to load its images in one process",
            f"an epoch: {self.iterations} iterations",
            f"evaluation: {1000 * self.embed_seconds:.0f} ms an image, and {self.search_seconds:.0f} s of search",
            f"all epochs and evaluations of one seed: about {self.hours:.1f} hours",
            f"peak memory: {peak} in training, {self.search_bytes / 1e9:.1f} GB for the search in the test set",
        ]
        if self.step_cost is not None:
            lines.append(f"of which the generator, {self.step_cost}")
        return "\n".join(lines)


def dry_run(recipe: Recipe, benchmark: Benchmark, options: Options, backbone: nn.Module | None = None) -> DryRun:
    """Load, train on, and evaluate one batch, and predict what the whole takes; nothing is kept.

    The prediction is for a machine that is idle. Where processes load images, they are taken to have cores of their
    own.

    Raises:
        ImportError, ValueError: as for `Experiment`.
    """
    check_classes(recipe, benchmark, options)
    with TemporaryDirectory() as folder:
        build_hooks(Path(folder))
    runs.set_seed(options.seed)
    device = options.torch_device
    parts = build_parts(recipe, options, benchmark.train.num_classes, backbone)
    iterations = max(len(benchmark.train) // recipe.batch_size, 1)

    rows = list(build_sampler(recipe, options, benchmark, 1))
    began = time.perf_counter()
    batch = [benchmark.train[row] for row in rows]
    load_seconds = time.perf_counter() - began
    trainer = parts.trainer(recipe, options, dataset=batch, iterations_per_epoch=1)
    trainer.dataloader_num_workers = 0
    step_cost = None
    if parts.generator is not None:
        with trainer.autocast():
            step_cost = parts.generator.cost(recipe.batch_size, recipe.samples_per_class)
    # On a GPU the first step in either state also loads and chooses kernels.
    for warming_up in (True, False, False) if device.type == "cuda" else (True, False):
        set_warm_up(parts.models["trunk"], warming_up)
        wait_for(device)
        began = time.perf_counter()
        trainer.train(start_epoch=1, num_epochs=1)
        wait_for(device)
        step_seconds = time.perf_counter() - began
    peak = peak_bytes(device)

    embed_seconds = time_embedding(parts, benchmark, options)
    queries, *others = (len(dataset) for dataset in benchmark.test.values())
    references = sum(others) or queries
    neighbours = min(max(benchmark.recall_at), references)
    search_seconds = time_search(queries, references, recipe.embedding_size, neighbours)
    evaluations = -(-recipe.epochs // options.evaluate_every) if options.select_on != "last" else 0
    embedded = queries + sum(others)
    validated = len(benchmark.val) if options.select_on == "val" and benchmark.val is not None else embedded
    searches = 1 + (evaluations if options.select_on == "test" else 0)
    iteration = max(step_seconds, load_seconds / options.workers) if options.workers else step_seconds + load_seconds
    seconds = recipe.epochs * iterations * iteration
    seconds += (embedded + evaluations * validated) * embed_seconds + searches * search_seconds
    return DryRun(
        load_seconds=load_seconds,
        step_seconds=step_seconds,
        embed_seconds=embed_seconds,
        search_seconds=search_seconds,
        iterations=iterations,
        hours=seconds / 3600,
        peak_bytes=peak,
        search_bytes=queries * neighbours * BYTES_OF_A_NEIGHBOUR,
        step_cost=step_cost,
    )


def time_embedding(parts: Parts, benchmark: Benchmark, options: Options) -> float:
    """Seconds per image to evaluate some of each split, their search included."""
    device, size = options.torch_device, options.eval_batch_size
    tester = build_tester(benchmark, batch_size=size, workers=0, device=device, end_of_testing_hook=quiet)
    trunk, embedder = parts.models["trunk"], parts.models["embedder"]
    some = {name: Subset(test, range(min(size, len(test)))) for name, test in benchmark.test.items()}
    began = time.perf_counter()
    run_tester(tester, benchmark, "test", trunk, embedder, datasets=some)
    seconds = time.perf_counter() - began
    if benchmark.val is not None:  # only to see that it runs
        val = {"val": Subset(benchmark.val, range(min(8, len(benchmark.val))))}
        run_tester(tester, benchmark, "val", trunk, embedder, datasets=val)
    return seconds / sum(len(part) for part in some.values())


def time_search(queries: int, references: int, size: int, neighbours: int) -> float:
    """Seconds to find the neighbours of all queries, from a search for some in as many references of random values."""
    some = min(queries, SEARCHED)
    found = torch.randn(references, size, device="cpu")
    began = time.perf_counter()
    FaissKNN()(found[:some], neighbours, found, False)
    return (time.perf_counter() - began) * queries / some


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on the GPU, or resident of this process; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # of this process alone, where Linux's rusage has the peak of the one that started it, too
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

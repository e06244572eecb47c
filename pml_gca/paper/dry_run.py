"""One batch of everything, and a prediction of the time and memory of a whole run."""

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
from ..generators.propagating import Propagating
from ..utils import runs
from ..utils.quantities import data_size, duration
from ..utils.records import build_hooks
from ..utils.validation import count_of
from .backbones import set_warm_up
from .evaluation import build_tester, quiet, run_tester
from .options import Options
from .recipe import Recipe
from .training_setup import TrainingSetup, build_sampler, build_training_setup, check_feasible

TIMED_QUERIES = 512  # for the time of a search
BYTES_PER_NEIGHBOUR = 40  # its distance, index and label, with their copies and comparisons


@dataclass(frozen=True)
class DryRun:
    """The measured cost of one batch, and the predicted cost of a run.

    Attributes:
        load_seconds: time to load a training batch in one process.
        step_seconds: time of a training iteration, without loading.
        embed_seconds: time to load and embed an image in evaluation.
        search_seconds: time to search the neighbours of all test images once.
        iterations: iterations per epoch.
        hours: time of all epochs and evaluations of one seed.
        peak_bytes: peak memory of a training step, of the GPU if there is one, else of the process.
        search_bytes: main memory of the search for neighbours, estimated.
        step_cost: cost of the generator, if it has a classifier or a graph; others cost little.
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
        peak = data_size(self.peak_bytes) if self.peak_bytes else "unknown"
        lines = [
            f"iteration: {self.step_seconds:.3g} s, plus {self.load_seconds:.3g} s to load its images in one process",
            f"epoch: {count_of(self.iterations, 'iteration')}",
            f"evaluation: {1000 * self.embed_seconds:.3g} ms per image, plus {self.search_seconds:.2g} s of search",
            f"one seed, all epochs and evaluations: about {duration(3600 * self.hours)}",
            f"peak memory: {peak} in training, {data_size(self.search_bytes)} to search the test set",
        ]
        if self.step_cost is not None:
            lines.append(f"the generator's share: {self.step_cost}")
        return "\n".join(lines)


def dry_run(recipe: Recipe, benchmark: Benchmark, options: Options, *, backbone: nn.Module | None = None) -> DryRun:
    """Load, train on and evaluate one batch, and predict the cost of the whole run. Nothing is kept.

    The prediction assumes an idle machine, and a core of its own for each loading process.

    Raises:
        ImportError, ValueError: as for `Experiment`.
    """
    check_feasible(recipe, benchmark, options)
    with TemporaryDirectory() as folder:
        build_hooks(Path(folder))
    runs.set_seed(options.seed)
    device = options.torch_device
    setup = build_training_setup(recipe, options, benchmark.train.num_classes, backbone=backbone)
    iterations = max(len(benchmark.train) // recipe.batch_size, 1)

    rows = list(build_sampler(recipe, options, benchmark, 1))
    began = time.perf_counter()
    batch = [benchmark.train[row] for row in rows]
    load_seconds = time.perf_counter() - began
    trainer = setup.trainer(recipe, options, dataset=batch, iterations_per_epoch=1)
    trainer.dataloader_num_workers = 0
    step_cost = None
    if isinstance(setup.generator, Propagating):
        with trainer.autocast():
            step_cost = setup.generator.cost(recipe.batch_size, recipe.samples_per_class)
    # On a GPU the first step in either state also loads and selects kernels.
    for warming_up in (True, False, False) if device.type == "cuda" else (True, False):
        set_warm_up(setup.models["trunk"], warming_up)
        wait_for(device)
        began = time.perf_counter()
        trainer.train(start_epoch=1, num_epochs=1)
        wait_for(device)
        step_seconds = time.perf_counter() - began
    peak = peak_bytes(device)

    embed_seconds = time_embedding(setup, benchmark, options)
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
        search_bytes=queries * neighbours * BYTES_PER_NEIGHBOUR,
        step_cost=step_cost,
    )


def time_embedding(setup: TrainingSetup, benchmark: Benchmark, options: Options) -> float:
    """Return the seconds per image to evaluate one batch of each test split, search included."""
    device, size = options.torch_device, options.eval_batch_size
    tester = build_tester(benchmark, batch_size=size, workers=0, device=device, end_of_testing_hook=quiet)
    trunk, embedder = setup.models["trunk"], setup.models["embedder"]
    some = {name: Subset(test, range(min(size, len(test)))) for name, test in benchmark.test.items()}
    began = time.perf_counter()
    run_tester(tester, benchmark, "test", trunk, embedder, datasets=some)
    seconds = time.perf_counter() - began
    if benchmark.val is not None:  # not timed, only to check that it runs
        val = {"val": Subset(benchmark.val, range(min(8, len(benchmark.val))))}
        run_tester(tester, benchmark, "val", trunk, embedder, datasets=val)
    return seconds / sum(len(part) for part in some.values())


def time_search(queries: int, references: int, size: int, neighbours: int) -> float:
    """Estimate the seconds to find the neighbours of all queries: time a few queries against random references."""
    some = min(queries, TIMED_QUERIES)
    found = torch.randn(references, size, device="cpu")
    began = time.perf_counter()
    FaissKNN()(found[:some], neighbours, found, False)
    return (time.perf_counter() - began) * queries / some


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far, allocated on the GPU or resident in this process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux's rusage may also report the peak of the parent process; this file does not
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

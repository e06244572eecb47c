"""One batch of everything, and what the whole will take."""

import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Subset

from ..backbones import set_warm_up
from ..cost import StepCost
from ..datasets import Benchmark
from ..recipes import Recipe
from ..utils import runs
from .evaluation import build_tester, quiet, run_tester
from .experiment import build_sampler, check_classes
from .options import Options
from .parts import Parts, build_parts


@dataclass(frozen=True)
class DryRun:
    """What a run was seen to need, and will.

    Attributes:
        load_seconds: to load a training batch, by one process.
        step_seconds: of a training iteration, the loading not counted.
        eval_seconds: per image of an evaluation, by one process.
        iterations: of an epoch.
        hours: of all epochs and evaluations, of one seed.
        peak_bytes: most memory in use up to now; of the GPU, if there is one, else of the process.
        step_cost: of the generator, if there is one.
    """

    load_seconds: float
    step_seconds: float
    eval_seconds: float
    iterations: int
    hours: float
    peak_bytes: int
    step_cost: StepCost | None

    def __str__(self) -> str:
        lines = [
            f"an iteration: {self.step_seconds:.2f} s, and {self.load_seconds:.2f} s to load its images in one process",
            f"an epoch: {self.iterations} iterations; evaluation: {1000 * self.eval_seconds:.0f} ms an image",
            f"all epochs and evaluations of one seed: about {self.hours:.1f} hours",
            f"peak memory: {self.peak_bytes / 1e9:.1f} GB" if self.peak_bytes else "peak memory: not known here",
        ]
        if self.step_cost is not None:
            lines.append(f"of which the generator, {self.step_cost}")
        return "\n".join(lines)


def dry_run(recipe: Recipe, benchmark: Benchmark, options: Options, backbone: nn.Module | None = None) -> DryRun:
    """Load, train on, and evaluate one batch, and predict what the whole takes; nothing is written.

    Of training, an iteration of the warm-up and one after it. The prediction takes the second, on a machine that was
    idle; first iterations are slow, so it errs on the long side.

    Raises:
        ValueError: as for :class:`Experiment`.
    """
    check_classes(recipe, benchmark, options)
    runs.set_seed(options.seed)
    device = torch.device(options.device)
    parts = build_parts(recipe, options, benchmark.train.num_classes, backbone)
    iterations = max(len(benchmark.train) // recipe.batch_size, 1)

    rows = list(build_sampler(recipe, benchmark, 1))
    began = time.perf_counter()
    batch = [benchmark.train[row] for row in rows]
    load_seconds = time.perf_counter() - began
    trainer = parts.trainer(recipe, options, dataset=batch, iterations_per_epoch=1)
    trainer.dataloader_num_workers = 0
    for warming_up in (True, False):
        set_warm_up(parts.models["trunk"], warming_up)
        began = time.perf_counter()
        trainer.train(start_epoch=1, num_epochs=1)
        wait_for(device)
        step_seconds = time.perf_counter() - began

    eval_seconds = time_evaluation(parts, benchmark, options)
    evaluated = sum(len(dataset) for dataset in benchmark.test.values())
    if options.select_on != "last":
        each = len(benchmark.val) if options.select_on == "val" and benchmark.val is not None else evaluated
        evaluated += each * -(-recipe.epochs // options.evaluate_every)
    iteration = max(step_seconds, load_seconds / options.workers) if options.workers else step_seconds + load_seconds
    generator = parts.generator
    return DryRun(
        load_seconds=load_seconds,
        step_seconds=step_seconds,
        eval_seconds=eval_seconds,
        iterations=iterations,
        hours=(recipe.epochs * iterations * iteration + evaluated * eval_seconds) / 3600,
        peak_bytes=peak_bytes(device),
        step_cost=generator.cost(recipe.batch_size, recipe.samples_per_class) if generator is not None else None,
    )


def time_evaluation(parts: Parts, benchmark: Benchmark, options: Options) -> float:
    """Seconds per image to embed some of each test set, with the retrieval among them."""
    device, size = torch.device(options.device), options.eval_batch_size
    tester = build_tester(benchmark, batch_size=size, workers=0, device=device, end_of_testing_hook=quiet)
    some = {name: Subset(test, range(min(size, len(test)))) for name, test in benchmark.test.items()}
    began = time.perf_counter()
    run_tester(tester, benchmark, "test", parts.models["trunk"], parts.models["embedder"], datasets=some)
    return (time.perf_counter() - began) / sum(len(part) for part in some.values())


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on the GPU, or resident of this process; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

"""One training run of a recipe, in a folder of its own, that goes on where it was stopped."""

import hashlib
import math
import os
import time
from pathlib import Path
from typing import Any

from pytorch_metric_learning import samplers
from torch import nn

from ..datasets import Benchmark
from ..utils import runs
from ..utils.records import build_hooks
from ..utils.training_run import TrainingRun
from .backbones import set_warm_up
from .checks import check_classes
from .evaluation import build_tester, quiet, run_tester
from .m_per_class_covering_sampler import MPerClassCoveringSampler
from .options import Options
from .parts import build_parts
from .recipes import Recipe


class Experiment:
    """Train by a recipe, choose an epoch, and evaluate it on unseen classes.

    After every epoch everything that has a state is in ``folder/checkpoint.pt``: a run that was killed goes on from
    there, on a CPU to the very same end, on a GPU to the same but for its rounding. ``folder`` also gets records of
    PML's hooks (``logs``, ``tensorboard``), the image model of the best epoch so far (``best-12.pt``, if that is epoch
    12) and, in the end, ``result.json``.

    Args:
        recipe: the paper's settings, or yours.
        benchmark: of `load_benchmark`.
        options: what the recipe leaves open.
        folder: where everything is kept.
        backbone: an image model of your own, in place of the recipe's, with an attribute ``num_features``.

    Raises:
        ValueError: the training set has fewer classes than a batch; validation classes are to choose the epoch, but
            there are none; no image that is evaluated has another of its class to find.
    """

    def __init__(
        self,
        recipe: Recipe,
        benchmark: Benchmark,
        options: Options,
        folder: str | os.PathLike[str],
        backbone: nn.Module | None = None,
    ) -> None:
        check_classes(recipe, benchmark, options)
        self.recipe, self.benchmark, self.options, self.folder = recipe, benchmark, options, Path(folder)
        self.backbone = backbone
        self.name = f"{recipe.name} seed {options.seed}"
        self.iterations = max(len(benchmark.train) // recipe.batch_size, 1)
        settings = {**identity(recipe, benchmark, options), "seed": options.seed}
        self.run = TrainingRun(self.folder, self.name, seed=options.seed, identity=settings)
        self.history: dict[str, list[float]] = {"epochs": [], "iterations": [], "seconds": [], "recall_at_1": []}
        self.seconds = 0.0
        self.best_epoch, self.best_recall = 0, math.nan

    def train(self) -> dict[str, Any]:
        """Train to the last epoch, evaluate the chosen one, and return (and keep) the result.

        Raises:
            ImportError: what keeps the records is missing.
            ValueError: the folder holds a run of another recipe, data set or option.
        """
        result = self.run.read_result()
        if result is not None:
            return result
        self.build()
        self.load_checkpoint()
        for epoch in self.run.epochs(self.recipe.epochs):
            self.train_epoch(epoch)
            if epoch % self.options.evaluate_every == 0 or epoch == self.recipe.epochs:
                self.choose(epoch)
            self.save_checkpoint()
        print(f"{self.name}: unseen classes, model of epoch {self.best_epoch}")
        runs.load_state(self.best_file(self.best_epoch), self.parts.models)
        self.tester.end_of_testing_hook = quiet  # what was recorded are epochs, and this is none
        return self.run.finish(
            {
                "epoch": self.best_epoch,
                "metrics": self.evaluate("test", self.best_epoch),
                "seconds_per_iteration": self.seconds / (self.iterations * self.recipe.epochs),
                "history": self.history,
                "left_out": list(self.benchmark.left_out),
            }
        )

    def build(self) -> None:
        """Models, trainer and tester."""
        recipe, options, benchmark = self.recipe, self.options, self.benchmark
        runs.set_seed(options.seed)
        self.parts = build_parts(recipe, options, benchmark.train.num_classes, self.backbone)
        self.sampler = build_sampler(recipe, options, benchmark, self.iterations)
        self.stateful = self.parts.with_state()  # all that a checkpoint must hold
        if options.sampler == "covering":
            self.stateful["sampler"] = self.sampler
        self.folder.mkdir(parents=True, exist_ok=True)
        hooks = build_hooks(self.folder)
        self.tester = build_tester(
            benchmark,
            batch_size=options.eval_batch_size,
            workers=options.workers,
            device=options.torch_device,
            end_of_testing_hook=hooks.end_of_testing_hook,
        )
        self.trainer = self.parts.trainer(
            recipe,
            options,
            dataset=benchmark.train,
            iterations_per_epoch=self.iterations,
            end_of_iteration_hook=hooks.end_of_iteration_hook,
        )

    def train_epoch(self, epoch: int) -> None:
        """One epoch of PML's trainer."""
        set_warm_up(self.parts.models["trunk"], epoch <= self.recipe.warmup_epochs)
        # A sampler of each epoch's own, too, if it is PML's: that shuffles its classes from where it left them.
        if self.options.sampler == "random":
            self.sampler = build_sampler(self.recipe, self.options, self.benchmark, self.iterations)
        self.trainer.sampler = self.sampler
        began = time.perf_counter()
        self.trainer.train(start_epoch=epoch, num_epochs=epoch)
        self.seconds += time.perf_counter() - began
        self.trainer.dataloader_iter = None  # ends its processes, before those of the evaluation start

    def choose(self, epoch: int) -> None:
        """Evaluate, and keep the image model if it is the best yet."""
        select_on = self.options.select_on
        recall = float(epoch)  # of "last": the later the better
        if select_on != "last":
            recall = self.evaluate(select_on, epoch)["recall_at_1"]
            print(f"{self.name}: {select_on} Recall@1 {100 * recall:.1f}%")
            for key, value in zip(self.history, (epoch, epoch * self.iterations, self.seconds, recall), strict=True):
                self.history[key].append(value)
        if not recall <= self.best_recall:  # of nan, which nothing is compared with, the latest
            self.best_epoch, self.best_recall = epoch, recall
            runs.save_state(self.best_file(epoch), self.parts.models, epoch=epoch)

    def evaluate(self, split: str, epoch: int) -> dict[str, float]:
        """The image model as it is, on a split."""
        models = self.parts.models
        return run_tester(self.tester, self.benchmark, split, models["trunk"], models["embedder"], epoch)

    def best_file(self, epoch: int) -> Path:
        """Where the image model is kept, if this epoch is the best. A killed run may leave that of a later one, too."""
        return self.folder / f"best-{epoch}.pt"

    def save_checkpoint(self) -> None:
        """Save everything that the next epoch needs, and delete the image models that were the best before."""
        self.run.save(
            self.stateful,
            machine=self.machine(),
            history=self.history,
            seconds=self.seconds,
            best=(self.best_epoch, self.best_recall),
        )
        for file in self.folder.glob("best-*.pt"):
            if file != self.best_file(self.best_epoch):
                file.unlink()

    def load_checkpoint(self) -> None:
        """Restore the last complete epoch, if there is one."""
        content = self.run.restore(self.stateful)
        if not content:
            return
        if content["machine"] != self.machine():
            print(
                f"{self.name}: began with {content['machine']}, goes on with {self.machine()}: random draws will differ"
            )
        self.history, self.seconds = content["history"], content["seconds"]
        self.best_epoch, self.best_recall = content["best"]

    def machine(self) -> str:
        """What random draws depend on, beside the seed."""
        loading = "processes that load" if self.options.workers else "no processes that load"
        return f"{self.options.torch_device.type}, {self.options.workers or ''} {loading}".replace("  ", " ")


def identity(recipe: Recipe, benchmark: Benchmark, options: Options) -> dict[str, Any]:
    """What tells apart runs that do not belong in one table: settings, and the images, by their last names."""
    parts = {"train": benchmark.train, "val": benchmark.val, **benchmark.test}
    names = ["/".join(Path(file).parts[-2:]) for part in parts.values() if part is not None for file in part.files]
    counts = {name: len(part) for name, part in parts.items() if part is not None}
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {**recipe.settings(), **options.identity(), "images": f"{counts}, {digest}"}


def build_sampler(
    recipe: Recipe, options: Options, benchmark: Benchmark, iterations: int
) -> MPerClassCoveringSampler | samplers.MPerClassSampler:
    """So many classes a batch, so many samples of each; repeated where a class has fewer."""
    labels, size = benchmark.train.labels, recipe.batch_size
    if options.sampler == "random":
        return samplers.MPerClassSampler(labels, recipe.samples_per_class, size, iterations * size)
    return MPerClassCoveringSampler(labels, recipe.samples_per_class, size, iterations * size, options.seed)

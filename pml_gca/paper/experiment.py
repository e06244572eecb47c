"""One training run of a recipe in its own folder. A run that was stopped can be resumed."""

import hashlib
import math
import os
import time
from pathlib import Path
from typing import Any

from torch import nn

from ..datasets import Benchmark
from ..trainers import LossLine
from ..utils import runs
from ..utils.records import build_hooks
from .backbones import set_warm_up
from .evaluation import build_tester, quiet, run_tester
from .options import Options
from .recipe import Recipe
from .recipes import experiment_title
from .training_setup import build_sampler, build_training_setup, check_feasible


class Experiment:
    """Train by a recipe, choose an epoch, and evaluate it on unseen classes.

    `folder` holds:

    - `checkpoint.pt`: all state after the last whole epoch. A killed run resumes from it. On a CPU it ends exactly
      as an unbroken run does, on a GPU up to rounding.
    - `best-12.pt`: the image model of the best epoch so far, here epoch 12.
    - `logs` and `tensorboard`: records of PML's hooks.
    - `result.json`: the result, at the end. With a recipe of more epochs the run goes on from there, with the schedule
      of the longer run: the generator's learning rate, which had fallen to 0 along a cosine, rises once.

    Args:
        recipe: the paper's settings, or yours.
        benchmark: from `load_benchmark`.
        options: the choices that the recipe leaves open.
        folder: folder of the run.
        backbone: an image model of your own instead of the recipe's, with an attribute `num_features`.

    Raises:
        ValueError: the training set has fewer classes than a batch. The epoch is chosen on validation classes, but
            there are none. Or no evaluated image has another image of its class to find.
    """

    def __init__(
        self,
        recipe: Recipe,
        benchmark: Benchmark,
        options: Options,
        folder: str | os.PathLike[str],
        *,
        backbone: nn.Module | None = None,
    ) -> None:
        check_feasible(recipe, benchmark, options)
        self.recipe, self.benchmark, self.options, self.folder = recipe, benchmark, options, Path(folder)
        self.backbone = backbone
        self.name = f"{experiment_title(recipe, benchmark)} seed {options.seed}"
        self.iterations = max(len(benchmark.train) // recipe.batch_size, 1)
        settings = {**identity(recipe, benchmark, options), "seed": options.seed}
        self.run = runs.TrainingRun(self.folder, self.name, seed=options.seed, identity=settings)
        self.history: dict[str, list[float]] = {"epochs": [], "iterations": [], "seconds": [], "recall_at_1": []}
        self.seconds = 0.0
        self.best_epoch, self.best_recall = 0, math.nan

    def train(self) -> dict[str, Any]:
        """Train to the last epoch, evaluate the chosen one, save the result and return it.

        Raises:
            ImportError: record-keeper or TensorBoard is missing.
            ValueError: the folder holds a run of another recipe, data set or option.
        """
        result = self.run.read_result(self.recipe.epochs)
        if result is not None:
            return result
        self.build()
        self.load_checkpoint()
        for epoch in self.run.epochs(self.recipe.epochs):
            self.train_epoch(epoch)
            if epoch % self.options.evaluate_every == 0 or epoch == self.recipe.epochs:
                self.choose(epoch)
            self.save_checkpoint()
        print(f"{self.name}: evaluating epoch {self.best_epoch} on unseen classes")
        runs.load_state(self.best_file(self.best_epoch), self.setup.models)
        self.tester.end_of_testing_hook = quiet  # records are per epoch; this evaluation is not one
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
        """Build models, trainer and tester."""
        recipe, options, benchmark = self.recipe, self.options, self.benchmark
        runs.set_seed(options.seed)
        self.setup = build_training_setup(recipe, options, benchmark.train.num_classes, backbone=self.backbone)
        self.sampler = build_sampler(recipe, options, benchmark, self.iterations)
        self.stateful = self.setup.with_state()  # everything that a checkpoint must hold
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
        self.trainer = self.setup.trainer(
            recipe,
            options,
            dataset=benchmark.train,
            iterations_per_epoch=self.iterations,
            end_of_iteration_hook=LossLine(hooks.end_of_iteration_hook),
        )

    def train_epoch(self, epoch: int) -> None:
        """Run one epoch of PML's trainer."""
        set_warm_up(self.setup.models["trunk"], epoch <= self.recipe.warmup_epochs)
        # PML's sampler shuffles its classes in place, from their last order. Make a new one for each epoch: an epoch
        # then depends on its seed alone, and a resumed run draws the same batches.
        if self.options.sampler == "random":
            self.sampler = build_sampler(self.recipe, self.options, self.benchmark, self.iterations)
        self.trainer.sampler = self.sampler
        began = time.perf_counter()
        self.trainer.train(start_epoch=epoch, num_epochs=epoch)
        self.seconds += time.perf_counter() - began
        self.trainer.dataloader_iter = None  # stop the loading processes before those of the evaluation start

    def choose(self, epoch: int) -> None:
        """Evaluate, and save the image model if it is the best so far."""
        select_on = self.options.select_on
        recall = float(epoch)  # for "last": the later the better
        if select_on != "last":
            recall = self.evaluate(select_on, epoch)["recall_at_1"]
            print(f"{self.name}: {select_on} Recall@1 {100 * recall:.1f}%")
            for key, value in zip(self.history, (epoch, epoch * self.iterations, self.seconds, recall), strict=True):
                self.history[key].append(value)
        if not recall <= self.best_recall:  # also true if one of them is NaN: then keep the later epoch
            self.best_epoch, self.best_recall = epoch, recall
            runs.save_state(self.best_file(epoch), self.setup.models, epoch=epoch)

    def evaluate(self, split: str, epoch: int) -> dict[str, float]:
        """Return the metrics of the current image model on a split."""
        models = self.setup.models
        return run_tester(self.tester, self.benchmark, split, models["trunk"], models["embedder"], epoch=epoch)

    def best_file(self, epoch: int) -> Path:
        """Return the file of the image model if this epoch is the best. A killed run may leave a later file, too."""
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
                f"{self.name}: started with {content['machine']}, resumed with {self.machine()}: random draws will "
                "differ"
            )
        for scheduler in self.setup.lr_schedulers.values():  # an extended run follows the longer schedule
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            for group, rate, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
                group["lr"] = rate * factor
        self.history, self.seconds = content["history"], content["seconds"]
        self.best_epoch, self.best_recall = content["best"]

    def machine(self) -> str:
        """Describe the device and loading processes, on which random draws depend besides the seed."""
        return f"{self.options.torch_device.type} and {self.options.workers} loading processes"


def identity(recipe: Recipe, benchmark: Benchmark, options: Options) -> dict[str, Any]:
    """Return what runs of one table must share: settings, and the images by folder and file name."""
    parts = {"train": benchmark.train, "val": benchmark.val, **benchmark.test}
    names = ["/".join(Path(file).parts[-2:]) for part in parts.values() if part is not None for file in part.files]
    counts = {name: len(part) for name, part in parts.items() if part is not None}
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {**recipe.settings(), **options.identity(), "images": f"{counts}, {digest}"}

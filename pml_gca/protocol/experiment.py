"""One training run of a recipe, in a folder of its own, that goes on where it was stopped."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import samplers
from torch import nn

from ..backbones import set_warm_up
from ..datasets import Benchmark
from ..recipes import Recipe
from ..utils import runs
from .evaluation import build_tester, run_tester
from .options import Options
from .parts import build_parts


class Experiment:
    """Train by a recipe, choose an epoch, and evaluate it on unseen classes.

    After every epoch everything that has a state is in ``folder/checkpoint.pt``: a run that was killed goes on from
    there, to the same end. ``folder`` also gets records of PML's hooks (``logs``, ``tensorboard``), the chosen epoch's
    image model (``best.pt``) and ``result.json``.

    Args:
        recipe: the paper's settings, or yours.
        benchmark: of :func:`pml_gca.datasets.load_benchmark`.
        options: what the recipe leaves open.
        folder: where everything is kept.
        backbone: an image model of your own, in place of the recipe's, with an attribute ``num_features``.

    Raises:
        ValueError: the training set has fewer classes than a batch; validation classes are to choose the epoch, but
            there are none.
    """

    def __init__(
        self,
        recipe: Recipe,
        benchmark: Benchmark,
        options: Options,
        folder: Path,
        backbone: nn.Module | None = None,
    ) -> None:
        check_classes(recipe, benchmark, options)
        self.recipe, self.benchmark, self.options, self.folder = recipe, benchmark, options, Path(folder)
        self.name = f"{recipe.name} seed {options.seed}"
        runs.set_seed(options.seed)
        self.parts = build_parts(recipe, options, benchmark.train.num_classes, backbone)
        self.folder.mkdir(parents=True, exist_ok=True)
        hooks = build_hooks(self.folder)
        self.tester = build_tester(
            benchmark,
            batch_size=options.eval_batch_size,
            workers=options.workers,
            device=torch.device(options.device),
            end_of_testing_hook=hooks.end_of_testing_hook,
        )
        self.iterations = max(len(benchmark.train) // recipe.batch_size, 1)
        self.trainer = self.parts.trainer(
            recipe,
            options,
            dataset=benchmark.train,
            iterations_per_epoch=self.iterations,
            end_of_iteration_hook=hooks.end_of_iteration_hook,
        )
        self.history: dict[str, list[float]] = {"epochs": [], "iterations": [], "seconds": [], "recall_at_1": []}
        self.seconds = 0.0
        self.best_epoch, self.best_recall = 0, -1.0

    def train(self) -> dict[str, Any]:
        """Train to the last epoch, evaluate the chosen one, and return (and keep) the result."""
        result_file = self.folder / "result.json"
        if result_file.exists():
            print(f"{self.name}: finished before")
            result: dict[str, Any] = json.loads(result_file.read_text())
            return result
        first = self.load_checkpoint() + 1
        if first > 1:
            print(f"{self.name}: going on after epoch {first - 1}")
        for epoch in range(first, self.recipe.epochs + 1):
            print(f"{self.name}: epoch {epoch} of {self.recipe.epochs}")
            self.train_epoch(epoch)
            if epoch % self.options.evaluate_every == 0 or epoch == self.recipe.epochs:
                self.choose(epoch)
            self.save_checkpoint(epoch)
        print(f"{self.name}: unseen classes, model of epoch {self.best_epoch}")
        runs.load_state(self.folder / "best.pt", self.parts.models)
        metrics = self.evaluate("test", self.recipe.epochs)
        result = {
            "recipe": asdict(self.recipe),
            "seed": self.options.seed,
            "select_on": self.options.select_on,
            "epoch": self.best_epoch,
            "metrics": metrics,
            "seconds_per_iteration": self.seconds / (self.iterations * self.recipe.epochs),
            "history": self.history,
            "left_out": [str(path) for path in self.benchmark.left_out],
        }
        runs.write_json(result_file, result)
        return result

    def train_epoch(self, epoch: int) -> None:
        """One epoch of PML's trainer."""
        recipe = self.recipe
        set_warm_up(self.parts.models["trunk"], epoch <= recipe.warmup_epochs)
        # A sampler of each epoch's own, too: PML's shuffles its classes from where it left them.
        runs.set_seed(runs.seed_of_epoch(self.options.seed, epoch))
        self.trainer.sampler = build_sampler(recipe, self.benchmark, self.iterations)
        began = time.perf_counter()
        self.trainer.train(start_epoch=epoch, num_epochs=epoch)
        self.seconds += time.perf_counter() - began

    def choose(self, epoch: int) -> None:
        """Evaluate, and keep the image model if it is the best yet."""
        select_on = self.options.select_on
        recall = float(epoch)  # of "last": the later the better
        if select_on != "last":
            found = self.evaluate(select_on, epoch)
            recall = found["recall_at_1"]
            print(f"{self.name}: {select_on} Recall@1 {100 * recall:.1f}%")
            for key, value in zip(self.history, (epoch, epoch * self.iterations, self.seconds, recall), strict=True):
                self.history[key].append(value)
        if recall > self.best_recall or self.best_epoch == 0:  # nan beats nothing, but is better than nothing
            self.best_epoch, self.best_recall = epoch, recall
            runs.save_state(self.folder / "best.pt", self.parts.models, epoch=epoch)

    def evaluate(self, split: str, epoch: int) -> dict[str, float]:
        """The image model as it is, on a split."""
        models = self.parts.models
        return run_tester(self.tester, self.benchmark, split, models["trunk"], models["embedder"], epoch)

    def save_checkpoint(self, epoch: int) -> None:
        """Everything that the next epoch needs."""
        runs.save_state(
            self.folder / "checkpoint.pt",
            self.parts.with_state(),
            epoch=epoch,
            history=self.history,
            seconds=self.seconds,
            best=(self.best_epoch, self.best_recall),
        )

    def load_checkpoint(self) -> int:
        """Restore the last whole epoch and return its number; 0 if there is none."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        content = runs.load_state(path, self.parts.with_state())
        self.history, self.seconds = content["history"], content["seconds"]
        self.best_epoch, self.best_recall = content["best"]
        return int(content["epoch"])


def check_classes(recipe: Recipe, benchmark: Benchmark, options: Options) -> None:
    """Raise if a batch cannot be filled, or the epoch not be chosen as asked."""
    if benchmark.train.num_classes < recipe.classes_per_batch:
        raise ValueError(
            f"classes_per_batch is {recipe.classes_per_batch}, but there are {benchmark.train.num_classes} training "
            "classes; set fewer"
        )
    if options.select_on == "val" and benchmark.val is None:
        raise ValueError("select_on is 'val', but there are no validation classes: val_fraction is 0")


def build_sampler(recipe: Recipe, benchmark: Benchmark, iterations: int) -> samplers.MPerClassSampler:
    """So many classes a batch, so many samples of each; repeated where a class has fewer."""
    return samplers.MPerClassSampler(
        benchmark.train.labels, recipe.samples_per_class, recipe.batch_size, iterations * recipe.batch_size
    )


def build_hooks(folder: Path) -> Any:
    """PML's hooks, with record-keeper and TensorBoard."""
    from pytorch_metric_learning.utils import logging_presets

    try:
        records, _, _ = logging_presets.get_record_keeper(str(folder / "logs"), str(folder / "tensorboard"))
    except ImportError as error:
        raise ImportError(
            f"records of the run need {error.name}, which is missing: pip install 'pml-gca[examples]'"
        ) from error
    return logging_presets.get_hook_container(records, primary_metric="recall_at_1")

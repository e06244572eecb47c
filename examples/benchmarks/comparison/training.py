"""Train a cell: a network, a loss, and what a contender puts beside the loss."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR

from comparison.beside_the_loss import LOSSES, Extras
from comparison.cells import Cell
from comparison.inputs import build_network, load_split
from comparison.registry import ALL
from comparison.study import METRICS
from pml_gca import HardNegativeGenerationLoss
from pml_gca.paper.training_setup import cosine_to_zero
from pml_gca.utils import RecallCalculator, runs

FIXED = {"weight_decay": 1e-4, "proxy_lr_factor": 10.0}  # the latter in units of the network's learning rate
DEFAULTS = {"schedule": "one_backward", "generator_lr": 1e-3, "classifier_lr": 1e-3, "beta": 20.0, **FIXED}
COMMON = {
    *("iterations", "embedding_size", "image_size", "classes_per_batch", "samples_per_class", "evaluate_every"),
    *("augment", "widths", "data", "backbone", "weights", "frozen_through", "views", "lr"),
    *("crossed", "miner", "memory", "classifier", "classifier_weight"),
    *("streams", "label_smoothing", "temperature", "group", "at_features"),
    *("mask", "place", "crossed_weight", "proxies", "head_counts"),
    *DEFAULTS,
}
"""Settings that no generator takes."""


class Diverged(Exception):
    """Embeddings are no longer finite."""


class Run:
    """A cell in training: data, network, loss, generator and optimizer.

    Args:
        cell: which.
    """

    def __init__(self, cell: Cell) -> None:
        self.settings = settings = {**DEFAULTS, **cell.settings}
        self.inputs = cell.inputs
        train, size = self.split("train"), settings["embedding_size"]
        runs.set_seed(cell.seed)
        self.network: Any = build_network(settings, cell.inputs)
        loss = LOSSES[cell.loss](train.num_classes, size)
        lr = settings["lr"]
        proxy_lr = settings["proxy_lr_factor"] * lr
        groups = self.network.parameter_groups(lr)
        self.generator = None
        if make := ALL[cell.contender].make:
            options = {name: value for name, value in cell.settings.items() if name not in COMMON}
            self.generator = make(train.num_classes, size, **options)
            loss = HardNegativeGenerationLoss(loss, self.generator, beta=settings["beta"])
            groups += loss.parameter_groups(
                settings["generator_lr"], classifier_lr=settings["classifier_lr"], loss_lr=proxy_lr
            )
        elif own := list(loss.parameters()):
            groups.append({"params": own, "lr": proxy_lr})
        num_features = getattr(self.network, "num_features", 0)
        self.extras = Extras(settings, train.num_classes, loss, cell.inputs.device, num_features=num_features)
        groups += self.extras.parameter_groups(lr)
        self.loss = self.extras.loss.to(cell.inputs.device)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings["weight_decay"], fused=True)
        iterations = settings["iterations"]
        self.scheduler = LambdaLR(self.optimizer, lambda step: cosine_to_zero(iterations, step))
        self.source = torch.Generator().manual_seed(cell.seed)
        self.members = train.labels.argsort(stable=True).split(train.labels.bincount().tolist())

    def split(self, name: str) -> Any:
        """Return one of the data sets."""
        return load_split(self.settings, self.inputs, name)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return images (B, C, S, S) and labels (B,): some samples of each of some classes."""
        order = torch.randperm(len(self.members), generator=self.source)
        classes = self.extras.choose_classes(order, self.settings["classes_per_batch"])
        wanted = self.settings["samples_per_class"]
        of_classes = (self.members[c] for c in classes.tolist())
        rows = torch.cat([m[torch.randperm(len(m), generator=self.source)[:wanted]] for m in of_classes])
        images, labels = zip(*self.split("train").__getitems__(rows.tolist()), strict=True)
        return torch.stack(images).to(self.inputs.device), torch.tensor(labels).to(self.inputs.device)

    def step(self) -> None:
        """Train for one iteration.

        Raises:
            Diverged: embeddings are no longer finite.
        """
        images, labels = self.batch()
        features = self.network.features(images) if self.extras.needs_features else None
        embeddings = self.network(images) if features is None else self.network.head(features)
        if not embeddings.isfinite().all():
            raise Diverged
        if self.settings["schedule"] == "alternating":
            assert isinstance(self.loss, HardNegativeGenerationLoss)
            with self.loss.phase("embedding"):
                self.descend(self.loss(embeddings, labels))
            with self.loss.phase("generation"):
                self.descend(self.loss(embeddings.detach(), labels))
        else:
            self.descend(self.extras.total(self.network, features, embeddings, labels))
        self.scheduler.step()

    def descend(self, total: Tensor) -> None:
        """Take one step of the optimizer; parameters without gradient stay."""
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    @torch.no_grad()
    def embed(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the normalised embeddings (M, D) and labels (M,) of a split."""
        data = self.split(split)
        self.network.eval()
        rows = torch.arange(len(data)).split(512)
        images = (torch.stack([image for image, _ in data.__getitems__(part.tolist())]) for part in rows)
        embeddings = torch.cat([normalize(self.network(part.to(self.inputs.device))).cpu() for part in images])
        self.network.train()
        return embeddings, data.labels

    def recall(self, split: str) -> float:
        """Return Recall@1 of a split."""
        embeddings, labels = self.embed(split)
        similarity = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
        return (labels[similarity.argmax(dim=1)] == labels).double().mean().item()


def train(cell: Cell, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train a cell; return its result.

    A run that diverges ends there, and its metrics are 0.

    Args:
        cell: which.
        tick: called after every iteration.

    Returns:
        `val_recall_at_1`, `seconds` of the iterations, `history` (both over the iterations), `metrics` of a run, and
        `diverged` if it did: the iteration.
    """
    run = Run(cell)
    every = cell.settings["evaluate_every"]
    history: dict[str, list[float]] = {"iterations": [0], "seconds": [0.0], "recall_at_1": [run.recall("val")]}
    seconds = 0.0
    metrics = dict.fromkeys(METRICS, 0.0)
    try:
        for iteration in range(1, cell.settings["iterations"] + 1):
            began = time.perf_counter()
            run.step()
            seconds += time.perf_counter() - began
            if iteration % every == 0 or iteration == cell.settings["iterations"]:
                for name, value in zip(history, (iteration, seconds, run.recall("val")), strict=True):
                    history[name].append(value)
            tick()
    except Diverged:
        result: dict[str, Any] = {"diverged": iteration, "val_recall_at_1": 0.0}
    else:
        result = {"val_recall_at_1": history["recall_at_1"][-1]}
        if cell.stage == "run":
            calculator = RecallCalculator(
                recall_at=(1, 2, 4, 8), include=METRICS, k="max_bin_count", device=torch.device("cpu")
            )
            metrics = calculator.get_accuracy(*run.embed("test"))
    result |= {"seconds": seconds, "history": history}
    return {**result, "metrics": metrics} if cell.stage == "run" else result


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: the number of threads changes how sums round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

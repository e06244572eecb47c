"""Watch the generated negatives of a training run: how hard they are, and where they lie among real samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from comparison.cells import Cell
from comparison.study import PANEL, SEEN, Study
from comparison.table import Row, new_row, part_of
from comparison.training import Run
from pml_gca.generators import BaseGenerator, GlobalCorrelationGenerator
from pml_gca.generators.planning import next_positive
from pml_gca.losses import HardNegativeGenerationLoss
from pml_gca.visualize import EmbeddingPanel, hardness

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles
ANCHOR = "G"
NUM_CLASSES = 4  # the class of the anchors, and those that the loss alone leaves nearest to it

MOST_SHOWN = 60  # negatives in a panel


class Probe:
    """A run that is watched. Watching changes nothing in it.

    Args:
        cell: which.
    """

    def __init__(self, cell: Cell) -> None:
        self.run = Run(cell)
        data = self.run.split("train")
        source = torch.Generator().manual_seed(0)
        self.rows = torch.cat(
            [members[torch.randperm(len(members), generator=source)[:3]] for members in self.run.members]
        )
        self.images = self._images(self.rows)
        self.labels = data.labels[self.rows]
        self.history: dict[str, list[Any]] = {"observed": [], "hardness": [], "strength": [], "coefficients": []}

    def _images(self, rows: Tensor) -> Tensor:
        """Return images with the same distortions every time, and leave the random state of training alone."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return torch.stack([image for image, _ in self.run.split("train").__getitems__(rows.tolist())])

    @torch.no_grad()
    def _negatives(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """Return embeddings, and the negatives that the generator now makes of them; None without a generator."""
        run, generator = self.run, self.run.generator
        run.network.eval()
        embeddings: Tensor = run.network(images)
        run.network.train()
        if generator is None:
            return embeddings, None
        assert isinstance(run.loss, HardNegativeGenerationLoss)
        generator.eval()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            negatives = generator(embeddings, labels, metric_level=run.loss.metric_level)
        generator.train()
        return embeddings, negatives

    def observe(self, iteration: int) -> None:
        """Record how hard the negatives of some batches are, and mean and standard deviation of a learned λ."""
        generator = self.run.generator
        if generator is None:
            return
        found, coefficients = [], []
        size = 3 * self.run.settings["classes_per_batch"]
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            embeddings, negatives = self._negatives(images, labels)
            positives, _ = next_positive(labels)
            z = embeddings[negatives.anchors]
            found.append(hardness(z, embeddings[positives[negatives.anchors]], negatives.embeddings))
            coefficients += coefficients_of(generator, embeddings, labels)
        self.history["observed"].append(iteration)
        quantiles = torch.cat(found).quantile(torch.tensor(LEVELS))
        self.history["hardness"].append([round(value, 4) for value in quantiles.tolist()])
        self.history["strength"].append(strength_of(generator, self.run))
        spread = torch.std_mean(torch.cat(coefficients)) if coefficients else ()
        self.history["coefficients"].append([round(value.item(), 4) for value in reversed(spread)])

    def classes_near(self) -> list[int]:
        """Return the class of the anchors and those whose mean embedding is nearest to its own."""
        data = self.run.split("train")
        embeddings, labels = self.run.embed("train")
        means = torch.stack([embeddings[labels == label].mean(dim=0) for label in range(data.num_classes)])
        anchor = data.classes.index(ANCHOR)
        order = (means - means[anchor]).norm(dim=1).argsort()
        return [int(label) for label in order[:NUM_CLASSES]]

    def panel(self, classes: list[int]) -> dict[str, Any]:
        """Return the embeddings of some classes, and the negatives of the anchors (the first class), as lists."""
        rows = torch.cat([self.run.members[label] for label in classes])
        labels = self.run.split("train").labels[rows]
        embeddings, negatives = self._negatives(self._images(rows), labels)
        panel: dict[str, Any] = {"embeddings": rounded(embeddings), "labels": labels.tolist()}
        if negatives is not None:
            mine = (labels[negatives.anchors] == classes[0]).nonzero()[:, 0]
            mine = mine[:: -(-len(mine) // MOST_SHOWN)]  # HDML makes one from every sample
            panel["synthetic"] = rounded(negatives.embeddings[mine])
            panel["synthetic_labels"] = negatives.labels[mine].tolist()
        return panel


def strength_of(generator: BaseGenerator, run: Run) -> float | None:
    """Return the present e^{-α/L}; None for a generator without it."""
    strength = getattr(generator, "interpolation_strength", None)
    assert isinstance(run.loss, HardNegativeGenerationLoss)
    return None if strength is None else round(float(strength(run.loss.metric_level)), 4)


@torch.no_grad()
def coefficients_of(generator: BaseGenerator, embeddings: Tensor, labels: Tensor) -> list[Tensor]:
    """Return λ of all pairs and channels of a batch; an empty list where it is not learned."""
    if not isinstance(generator, GlobalCorrelationGenerator) or not generator.has_objective:
        return []
    generator.eval()
    found = generator.correlate(embeddings, labels).coefficients.flatten()
    generator.train()
    return [found]


def rounded(values: Tensor) -> list[list[float]]:
    """Return rows rounded to 4 digits, to keep files small."""
    return [[round(value, 4) for value in row] for row in values.tolist()]


def as_panel(row: Row) -> EmbeddingPanel:
    """Return the panel of a watched run."""
    return EmbeddingPanel(**{name: torch.tensor(row[name]) for name in PANEL if name in row})


def as_history(row: Row) -> dict[str, Any]:
    """Return what `plot_hardness` draws of a watched run."""
    return {"iterations": row["observed"], "hardness": row["hardness"]}


def watch(cell: Cell, study: Study, classes: list[int] | None, tick: Callable[[], None] = lambda: None) -> Row:
    """Train a cell again and watch it; or read what the study kept of that.

    Args:
        cell: which.
        study: keeps the observations.
        classes: of the panel; None for those that this run finds nearest to one another.
        tick: called after every iteration.

    Returns:
        Row with `val_recall_at_1`, which is that of the cell itself; `observed`, `hardness`, `strength` and
        `coefficients` over iterations; `classes` and their `names`; and the panel.

    Raises:
        ValueError: it was watched with other settings, or the row is incomplete.
    """
    row = study.watched.find(cell)
    if row is not None:
        part_of(row, (*SEEN, "classes", "names", *PANEL[:2]), study.watched.file, cell.key)
        return row
    probe = Probe(cell)
    every = cell.settings["evaluate_every"]
    probe.observe(0)
    for iteration in range(1, cell.settings["iterations"] + 1):
        probe.run.step()
        if iteration % every == 0:
            probe.observe(iteration)
        tick()
    classes = classes or probe.classes_near()
    row = new_row(
        cell,
        val_recall_at_1=probe.run.recall("val"),
        **probe.history,
        classes=classes,
        names=[probe.run.split("train").classes[label] for label in classes],
        **probe.panel(classes),
    )
    study.watched.put(row)
    study.watched.save()
    return row

"""A node classification beside any generator: J_gce of section 3.5, https://arxiv.org/abs/2411.13145"""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..correlation.correlations import Correlations
from ..correlation.objective import classification_loss
from ..utils.records import hide_modules_from_records
from ..utils.validation import check_learning_rates
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .checks import check_generator
from .propagating import Propagating, build_propagation

TERM = "node_classification_loss"
NOTHING_COMPILED = (
    "nothing is compiled on a CPU, where the graph is faster as it is; for a GPU, call compile() after moving the loss "
    "to it"
)
CLASSIFIED_ALREADY = "generator must have no node classification of its own; {} has one: use it as it is"


class ClassifiedGenerator(Propagating, BaseGenerator):
    """Any generator, and a classifier of the embeddings that learns beside it.

    The negatives are those of the generator. The classifier adds the objective `node_classification_loss`: the mean
    cross-entropy of the anchors, J_gce of GCA-HNG. Its gradient trains the classifier and the embeddings. With
    `num_layers=0` the classifier is Linear, BatchNorm, Linear of each embedding. With more it is GCA-HNG's graph
    over the whole batch, without coefficients.

    Args:
        generator: makes the negatives; the classifier takes its classes and channels. It must have no node
            classification of its own: `GlobalCorrelationGenerator` has one.
        num_layers: K rounds of propagation through the graph; 0 for no graph.
        num_heads: H heads of the node attention, which divide the channels; by default the largest divisor up to 4.
        dropout: of the edge attention, in training.
        edge_chunk_size: edges computed at a time, see `GlobalCorrelationGenerator`.
        collect_stats: record statistics for PML's hooks, also of the generator inside; PML's global default if None.

    Raises:
        TypeError, ValueError: `generator` is no generator, or classifies nodes already; or an option is of the wrong
            type or out of range.

    Examples:
        >>> import torch
        >>> from pml_gca.generators import HardestNegativeGenerator
        >>> generator = ClassifiedGenerator(HardestNegativeGenerator(num_classes=10, embedding_size=8))
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape, list(negatives.objectives)
        (torch.Size([12, 8]), ['node_classification_loss'])
    """

    stat_names = (TERM,)

    def __init__(
        self,
        generator: BaseGenerator,
        *,
        num_layers: int = 0,
        num_heads: int | None = None,
        dropout: float = 0.1,
        edge_chunk_size: int | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        check_generator(generator)
        if TERM in generator.stat_names:
            raise ValueError(CLASSIFIED_ALREADY.format(type(generator).__name__))
        super().__init__(generator.num_classes, generator.embedding_size, collect_stats=collect_stats)
        self.has_objective = generator.has_objective
        self.propagation = build_propagation(
            generator.num_classes,
            generator.embedding_size,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            edge_chunk_size=edge_chunk_size,
            with_coefficients=False,
        )
        hide_modules_from_records(self.propagation)
        self.generator = generator
        if self.collect_stats:
            generator.start_collecting_stats()

    def generate(self, batch: Batch, metric_level: Tensor | float = math.inf, **given: Any) -> SyntheticNegatives:
        """Return the generator's negatives with one more objective; `given` arguments are passed to the generator."""
        graph: Correlations | None = None
        if batch.wants(TERM):  # else it is the second step of an iteration
            self.reset_stats()
            if self.training and torch.is_grad_enabled():
                self.follow_device(batch.embeddings.device)
                # Before the host waits for the labels.
                graph = self.propagate_in(batch.embeddings.dtype, batch.nodes, batch.labels, batch.edges)
        negatives = self.generator.generate(batch, metric_level, **given)
        if graph is None:
            return negatives
        if TERM in negatives.objectives:
            raise ValueError(CLASSIFIED_ALREADY.format(type(self.generator).__name__))
        batch.finish()  # labels out of range must not reach a cross-entropy: on a GPU it would abort the process
        loss = classification_loss(graph.node_logits[: batch.num_anchors], batch.anchor_labels)
        self.observe(**{TERM: loss})
        return replace(negatives, objectives={TERM: loss, **negatives.objectives})

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the graph; the generator inside stays as it is. Call it after moving the loss to its device.

        Args:
            *args, **kwargs: of `torch.compile`.

        Warns:
            UserWarning: the graph is on a CPU, where it is faster as it is: nothing is compiled.
        """
        if self.is_on_cpu:
            warnings.warn(NOTHING_COMPILED, UserWarning, stacklevel=2)
        super().compile(*args, **kwargs)

    def largest_value(self, dtype: torch.dtype) -> float:
        """Return what the generator inside allows."""
        return self.generator.largest_value(dtype)

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return the groups of the generator inside, and the node classifier at `lr`."""
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        groups = self.generator.parameter_groups(lr, classifier_lr=classifier_lr)
        groups.append({"params": list(self.propagation.parameters()), "lr": lr})
        return [group for group in groups if group["params"]]

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return those of the generator inside: the node classifier has nothing to do with `generation_loss`."""
        return self.generator.objective_parameters()

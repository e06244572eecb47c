"""GCA-HNG's generator: Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145"""

from typing import Any

import torch
from torch import Tensor, nn

from ..correlation.correlations import Correlations
from ..correlation.objective import GenerationObjective, classification_loss
from ..utils.dtypes import matmul_dtype
from ..utils.moments import std_mean
from ..utils.records import hide_modules_from_records
from ..utils.validation import check_choice, check_learning_rates
from .base_generator import BaseGenerator
from .batch import Batch
from .compiled_step import CompiledStep
from .interpolation import hardness
from .planning import CandidatePlan
from .propagating import build_propagation

OBJECTIVES = ("node_classification_loss", "generation_loss", "auxiliary_classification_loss")
CLASSIFY_AMONG = ("all", "batch")
TERMS = (*OBJECTIVES, "generated_classification_loss", "similarity_loss", "diversity_loss")  # recorded


class GlobalCorrelationGenerator(CompiledStep):
    r"""Hard negatives steered by channel-wise correlations that a graph over the whole batch has learned.

    For every anchor, the samples of all other classes in the batch are pulled toward it by coefficients λ ∈ (0, 1)^D
    (`pml_gca.generators.interpolation`). The pulled samples of a class are merged into one synthetic negative.

    Args:
        num_classes: training classes N.
        embedding_size: channels D, divisible by `num_heads`.
        num_layers: K rounds of propagation. The paper takes 2 for CUB and Cars196, 1 for SOP and InShop; with 0 nothing
            is propagated.
        num_heads: H heads of the node attention; 4 and 2 likewise. By default the largest divisor of
            `embedding_size` up to 4.
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        dropout: of the edge attention, in training.
        classification_weight: w_c of J_soft, which keeps a negative in its class.
        similarity_weight: w_s of J_sim, which makes it hard.
        diversity_weight: w_d of J_div, which makes coefficients differ; in units of 0.01.
        classify_among: `"all"`: J_soft tells a negative from all N classes, as in the paper. `"batch"`: from the
            classes of the batch, its references and its memory alone. That leaves the others out of the softmax, so
            J_soft is smaller; with thousands of classes it halves the cost of a step.
        merging: how the candidates of a class become one negative. `"random"`: by random weights, as in the paper.
            `"mean"`: by equal weights. `"hardest"`: the candidate of the sample with the largest cosine similarity
            to the anchor is taken.
        edge_chunk_size: edges computed at a time, with their activations recomputed in the backward pass: a training
            step then takes little memory, and a fifth more arithmetic. `None` does so where the activations would
            fill more than half of the free memory, and else keeps them. See `cost`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range, or `embedding_size` is not divisible
            by `num_heads`.

    Examples:
        >>> import torch
        >>> generator = GlobalCorrelationGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    stat_names = (*BaseGenerator.stat_names, "lambda_mean", "lambda_std", "hardness", *TERMS)
    has_objective = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_layers: int = 2,
        num_heads: int | None = None,
        alpha: float = 5.0,
        dropout: float = 0.1,
        classification_weight: float = 20,
        similarity_weight: float = 20,
        diversity_weight: float = 60,
        classify_among: str = "all",
        merging: str = "random",
        edge_chunk_size: int | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, alpha=alpha, merging=merging, collect_stats=collect_stats)
        check_choice("classify_among", classify_among, CLASSIFY_AMONG)
        self.propagation = build_propagation(
            num_classes,
            embedding_size,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            edge_chunk_size=edge_chunk_size,
        )
        self.objective = GenerationObjective(
            nn.Linear(embedding_size, num_classes),
            classification_weight=classification_weight,
            similarity_weight=similarity_weight,
            diversity_weight=diversity_weight,
        )
        self.classify_among = classify_among
        hide_modules_from_records(self)

    def correlate(self, embeddings: Tensor, labels: Tensor) -> Correlations:
        """Propagate the graph of a batch; gradients flow into embeddings and parameters.

        Args:
            embeddings: (B, D), floating, finite.
            labels: (B,), integers in [0, num_classes), any composition and order.

        Raises:
            TypeError, ValueError: see `forward`.
        """
        batch = self.batch(embeddings, labels)
        batch.finish()
        self.follow_device(embeddings.device)
        return self.propagate_in(embeddings.dtype, embeddings, batch.labels)

    def propagate(self, batch: Batch, nodes: Tensor) -> Correlations:
        """Propagate the graph of a detached copy of the nodes: one propagation serves all objectives.

        Only node classification trains the embeddings. `objectives` lets its gradient reach them.
        """
        learns = self.training and torch.is_grad_enabled()
        copy = nodes.detach().requires_grad_(learns and batch.embeddings.requires_grad)
        with torch.set_grad_enabled(learns):
            return self.propagate_in(batch.embeddings.dtype, copy, batch.labels, batch.edges)

    def coefficients_of_edges(self, num_edges: int, nodes: Tensor, graph: Correlations | None) -> Tensor:
        """Return the graph's coefficients."""
        assert graph is not None
        return graph.coefficients

    def classify_nodes(self, batch: Batch, graph: Correlations) -> dict[str, Tensor]:
        """Return J_gce by name, with its gradient to the embeddings, if the batch wants it."""
        name = OBJECTIVES[0]
        if not batch.wants(name):
            return {}
        loss = classification_loss(graph.node_logits[: batch.num_anchors], batch.anchor_labels)
        return {name: graph.with_gradient_to(batch.anchors, loss)}

    def record(
        self, nodes: Tensor, coefficients: Tensor, synthetic: Tensor, weights: Tensor, plan: CandidatePlan
    ) -> None:
        """Observe mean and deviation of λ; if statistics are collected, also the hardness of the negatives.

        Where processes share the edges, λ is that of this process's own: logs exchange nothing.
        """
        if coefficients.numel() > 1:
            deviation, mean = std_mean(coefficients.detach(), synthetic.dtype)
            self.observe(lambda_mean=mean, lambda_std=deviation)
        if self.collect_stats and len(synthetic):
            self.observe(hardness=hardness(nodes, synthetic, weights, plan))

    def count_soft_classes(self, num_nodes: int, samples_per_class: int) -> int:
        """Return how many classes J_soft tells a negative from, if each has so many samples among the nodes."""
        most = super().count_soft_classes(num_nodes, samples_per_class)
        return min(most, -(-num_nodes // samples_per_class)) if self.classify_among == "batch" else most

    def largest_value(self, dtype: torch.dtype) -> float:
        """Return the base class's value; less in float16, where the gradients of coefficients overflow earlier."""
        if self.training and matmul_dtype(self.objective.classifier.weight) == torch.float16:
            return torch.finfo(torch.float16).max
        return super().largest_value(dtype)

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Return optimizer groups: the propagation at `lr`, the auxiliary classifier at `classifier_lr`."""
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        return [
            {"params": list(self.propagation.parameters()), "lr": lr},
            {"params": list(self.objective.parameters()), "lr": classifier_lr},
        ]

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the propagation; the auxiliary classifier is trained by a term of its own."""
        return list(self.propagation.parameters())

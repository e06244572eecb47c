"""GCA-HNG's generator: Peng et al., IJCV 2024, https://arxiv.org/abs/2411.13145"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..correlation.blocks import linear
from ..correlation.correlations import Correlations
from ..correlation.cost import StepCost, choose_memory, step_bytes, step_multiply_adds
from ..correlation.diversity import diversity_loss
from ..correlation.objective import classification_loss, frozen_classification_loss, similarity_loss
from ..correlation.propagation import CorrelationPropagation
from ..utils.dtypes import compute_dtype, matmul_dtype
from ..utils.norms import scale_of
from ..utils.records import hide_modules_from_records
from ..utils.validation import (
    check_choice,
    check_flag,
    check_learning_rates,
    check_level,
    check_number,
    check_positive_int,
    check_share,
)
from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .interpolation import MERGINGS, CandidatePlan, class_weights, plan_candidates, pull_strength
from .synthesis import synthesize

AUXILIARY_WEIGHT = 10.0  # of the auxiliary classifier's cross-entropy
DIVERSITY_UNIT = 0.01  # the published diversity weights are given in units of it
SOURCES = ("learned", "random")
TERMS = (
    "node_classification_loss",
    "generated_classification_loss",
    "similarity_loss",
    "diversity_loss",
    "auxiliary_classification_loss",
    "generation_loss",
)


class GlobalCorrelationGenerator(BaseGenerator):
    r"""Hard negatives steered by channel-wise correlations that a graph over the whole batch has learned.

    For every anchor and every other class of the batch, the class's samples are pulled toward the anchor by
    coefficients λ ∈ (0, 1)^D (`pml_gca.generators.interpolation`), and merged at random into one synthetic negative.

    Args:
        num_classes: training classes N.
        embedding_size: channels D, divisible by ``num_heads``.
        num_layers: K rounds of propagation. The paper takes 2 for CUB and Cars196, 1 for SOP and InShop; with 0 nothing
            is propagated.
        num_heads: H heads of the node attention; 4 and 2 likewise. By default the largest divisor of
            ``embedding_size`` up to 4.
        alpha: α in e^{-α/L}: how far the metric loss L must have fallen before negatives are pulled in.
        dropout: of the edge attention, in training.
        classification_weight: w_c of J_soft, which keeps a negative in its class.
        similarity_weight: w_s of J_sim, which makes it hard.
        diversity_weight: w_d of J_div, which makes coefficients differ; in units of 0.01.
        edge_chunk_size: edges computed at a time, with their activations computed anew in the backward pass: a
            training step then takes little memory, and a fifth more arithmetic. ``None`` does so where the
            activations would fill more than half of the free memory, and else keeps them. See `cost`.
        collect_stats: record statistics for PML's hooks; PML's global default if None.
        coefficients: where λ comes from. ``"learned"``: from the graph. A number in [0, 1]: all are that number.
            ``"random"``: 0 or 1 for each channel of each pair. The last two leave the graph's node classification as
            it is, and make the graph far cheaper: what only λ needs is neither computed nor trained.
        channelwise: False: one coefficient for each pair, the mean over its channels.
        edge_messages: False: nodes hear each other, but not their edges.
        merging: how the candidates of a class become one negative. ``"random"``: merged with random weights, as in the
            paper. ``"mean"``: their mean. ``"hardest"``: that of the sample with the largest cosine similarity to the
            anchor is taken.
        classify_embeddings: False: node classification trains the generator, and not the embeddings.

    The last five, and ``num_layers=0``, ``alpha=0`` and weights of 0, take the method apart.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, out of range, or ``embedding_size`` is not divisible
            by ``num_heads``.

    Example:
        >>> import torch
        >>> generator = GlobalCorrelationGenerator(num_classes=10, embedding_size=8)
        >>> negatives = generator(torch.randn(6, 8), torch.tensor([0, 0, 4, 4, 7, 7]))
        >>> negatives.embeddings.shape  # 6 anchors, 2 other classes each
        torch.Size([12, 8])
    """

    stat_names = (*BaseGenerator.stat_names, "lambda_mean", "lambda_std", "hardness", *TERMS)

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
        edge_chunk_size: int | None = None,
        collect_stats: bool | None = None,
        coefficients: str | float = "learned",
        channelwise: bool = True,
        edge_messages: bool = True,
        merging: str = "random",
        classify_embeddings: bool = True,
    ) -> None:
        super().__init__(num_classes, embedding_size, collect_stats=collect_stats)
        check_positive_int("num_layers", num_layers, minimum=0)
        if num_heads is None:
            num_heads = next(heads for heads in (4, 3, 2, 1) if embedding_size % heads == 0)
        check_positive_int("num_heads", num_heads)
        if embedding_size % num_heads:
            raise ValueError(
                f"embedding_size must be divisible by num_heads, got {embedding_size} channels for {num_heads} heads"
            )
        check_number("alpha", alpha)
        check_number("dropout", dropout)
        check_number("classification_weight", classification_weight)
        check_number("similarity_weight", similarity_weight)
        check_number("diversity_weight", diversity_weight)
        if dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}")
        self.alpha = alpha
        self.classification_weight = classification_weight
        self.similarity_weight = similarity_weight
        self.diversity_weight = diversity_weight
        if edge_chunk_size is not None:
            check_positive_int("edge_chunk_size", edge_chunk_size)
        if not isinstance(coefficients, str):
            check_share("coefficients", coefficients)
        elif coefficients not in SOURCES:
            raise ValueError(f"coefficients must be {', '.join(SOURCES)} or a number in [0, 1], got {coefficients!r}")
        check_flag("channelwise", channelwise)
        check_flag("edge_messages", edge_messages)
        check_choice("merging", merging, MERGINGS)
        check_flag("classify_embeddings", classify_embeddings)
        self.coefficients = coefficients
        self.channelwise = channelwise
        self.merging = merging
        self.classify_embeddings = classify_embeddings
        self.propagation = CorrelationPropagation(
            num_classes,
            embedding_size,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            edge_chunk_size=edge_chunk_size,
            with_coefficients=self.has_objective,
        )
        if not edge_messages:
            for layer in self.propagation.layers:  # GELU(0) = 0: every message is zero
                for parameter in layer.get_submodule("node.edge_to_node").parameters():
                    nn.init.zeros_(parameter).requires_grad_(False)
        self.auxiliary_classifier = nn.Linear(embedding_size, num_classes)
        if not self.has_objective:
            self.auxiliary_classifier.requires_grad_(False)  # it never gets one; distributed training would wait for it
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
        return self._propagate(embeddings.dtype, embeddings, batch.labels)

    def _propagate(self, dtype: torch.dtype, *inputs: Any) -> Correlations:
        """The propagation, computed in ``dtype`` where parameters are narrower: PML casts those of losses likewise."""
        parameters = dict(self.propagation.named_parameters())
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if all(torch.promote_types(own, dtype) == own for own in dtypes):
            found: Correlations = self.propagation(*inputs)
            return found
        cast = {name: p.to(torch.promote_types(p.dtype, dtype)) for name, p in parameters.items()}
        found = functional_call(self.propagation, cast, inputs)
        return found

    def generate(
        self, batch: Batch, metric_level: Tensor | float = math.inf, *, draws: Tensor | None = None
    ) -> SyntheticNegatives:
        """Interpolate by learned coefficients; ``draws`` (A, N) in [0, 1] take the place of random ones."""
        if batch.wants("node_classification_loss"):  # else it is the second half of an iteration
            self.reset_stats()
        embeddings, labels, num_anchors = batch.embeddings, batch.labels, batch.num_anchors
        self.follow_device(embeddings.device)
        anchors, nodes = batch.anchors, batch.nodes
        # One propagation, from a leaf copy, serves all terms; what may reach the embeddings is handed on to them.
        learns = self.training and torch.is_grad_enabled()
        hands_on = learns and embeddings.requires_grad and self.classify_embeddings
        leaf = nodes.detach().requires_grad_(hands_on)
        with torch.set_grad_enabled(learns):
            correlations = self._propagate(embeddings.dtype, leaf, labels)
        plan = plan_candidates(batch.labels_on_host(), num_anchors)
        num_skipped = int((~plan.has_positive).sum())
        plan = plan.to(nodes.device)
        if draws is None:
            draws = torch.rand(num_anchors, len(labels), dtype=compute_dtype(nodes), device=nodes.device)
        weights = class_weights(self.merging, nodes, plan, draws)
        correlations = replace(correlations, coefficients=self._chosen(correlations))
        strength = self.interpolation_strength(metric_level, compute_dtype(nodes))
        chunk = correlations.edge_chunk_size
        synthetic, own = synthesize(nodes, correlations.coefficients, plan, weights, strength, chunk)
        objectives: dict[str, Tensor] = {}
        if learns:
            objectives = self._objectives(batch, anchors, labels, leaf, correlations, own, plan)
        if self.collect_stats:
            self.num_negatives, self.num_skipped_anchors = len(synthetic), num_skipped
            self._record(nodes, correlations, synthetic, weights, plan)
        return SyntheticNegatives(
            synthetic.to(embeddings.dtype),
            plan.synthetic_labels,
            plan.synthetic_anchors,
            objectives,
            num_skipped,
        )

    def largest_value(self, dtype: torch.dtype) -> float:
        """As in the base class; in float16, gradients of coefficients, which grow with embeddings, overflow earlier."""
        in_half = matmul_dtype(self.auxiliary_classifier.weight) == torch.float16
        return (
            torch.finfo(torch.float16).max
            if in_half and self.has_objective and self.training
            else super().largest_value(dtype)
        )

    @property
    def edge_chunk_size(self) -> int | None:
        """Edges computed at a time, see the class; may be set."""
        return self.propagation.edge_chunk_size

    @edge_chunk_size.setter
    def edge_chunk_size(self, value: int | None) -> None:
        if value is not None:
            check_positive_int("edge_chunk_size", value)
        self.propagation.edge_chunk_size = value

    def interpolation_strength(self, metric_level: Tensor | float, dtype: torch.dtype | None = None) -> Tensor:
        """e^{-α/L}, as from `pull_strength`: 1 for an infinite level, 0 for one of 0."""
        if not isinstance(metric_level, Tensor):
            check_level("metric_level", metric_level)
        return pull_strength(self.alpha, metric_level, dtype)

    def _objectives(
        self,
        batch: Batch,
        anchors: Tensor,
        labels: Tensor,
        leaf: Tensor,
        correlations: Correlations,
        synthetic: Tensor,
        plan: CandidatePlan,
    ) -> dict[str, Tensor]:
        """The terms to add to the loss, as far as wanted. Of them only node classification reaches the embeddings."""
        terms: dict[str, Tensor] = {}
        anchor_labels = labels[: len(anchors)]
        real = leaf.detach()
        classifier = self.auxiliary_classifier
        if batch.wants("node_classification_loss"):
            logits = correlations.node_logits[: len(anchors)]
            node_classification = classification_loss(logits, anchor_labels)
            terms["node_classification_loss"] = correlations.with_gradient_to(anchors, node_classification)
        if batch.wants("generation_loss") and self.has_objective:
            weight, bias = (x.to(torch.promote_types(x.dtype, real.dtype)) for x in classifier.parameters())
            generated = frozen_classification_loss(synthetic, weight, bias, plan.synthetic_labels)
            similarity = similarity_loss(real, plan.synthetic_anchors, synthetic)
            diversity = diversity_loss(correlations.coefficients, len(leaf), correlations.edge_chunk_size)
            terms["generation_loss"] = 0.5 * (
                self.classification_weight * generated
                + self.similarity_weight * similarity
                + DIVERSITY_UNIT * self.diversity_weight * diversity
            )
            if self.collect_stats:
                self.generated_classification_loss = generated.item()
                self.similarity_loss, self.diversity_loss = similarity.item(), diversity.item()
        if batch.wants("auxiliary_classification_loss") and self.has_objective:
            with torch.autocast(real.device.type, enabled=False):  # real embeddings may be too long for float16
                guesses = linear(classifier, real[: len(anchors)].to(compute_dtype(classifier.weight, real)))
            terms["auxiliary_classification_loss"] = AUXILIARY_WEIGHT * classification_loss(guesses, anchor_labels)
        if self.collect_stats:
            for name, term in terms.items():
                setattr(self, name, term.item() / (AUXILIARY_WEIGHT if name.startswith("auxiliary") else 1))
        return terms

    def _chosen(self, correlations: Correlations) -> Tensor:
        """The coefficients to generate with: (E, D)."""
        learned, size = correlations.coefficients, (correlations.pairs.shape[1], self.embedding_size)
        if self.coefficients == "random":
            return torch.rand(size, dtype=learned.dtype, device=learned.device).round()
        if not isinstance(self.coefficients, str):
            return learned.new_full((1, 1), self.coefficients).expand(size)
        return learned if self.channelwise else learned.mean(dim=1, keepdim=True).expand_as(learned)

    @property
    def has_objective(self) -> bool:  # type: ignore[override]
        """Whether J_gen is there to be followed."""
        return self.coefficients == "learned"

    def objective_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the propagation; the auxiliary classifier is trained by a term of its own."""
        return list(self.propagation.parameters()) if self.has_objective else []

    @torch.no_grad()
    def _record(
        self, nodes: Tensor, correlations: Correlations, synthetic: Tensor, weights: Tensor, plan: CandidatePlan
    ) -> None:
        """Statistics for PML's hooks; reads values back from the device, so only where they are collected."""
        if correlations.coefficients.numel() > 1:
            spread, mean = torch.std_mean(correlations.coefficients.to(synthetic.dtype))
            self.lambda_mean, self.lambda_std = mean.item(), spread.item()
        if len(synthetic):
            z = nodes.to(synthetic.dtype)
            scale = scale_of(z.flatten(), dim=0)
            z, synthetic = z / scale, synthetic / scale
            distance = torch.cdist(z[: len(plan.slots)], z, compute_mode="donot_use_mm_for_euclid_dist")
            merged = z.new_zeros(len(synthetic) + 1).index_add(0, plan.slots.flatten(), (distance * weights).flatten())
            real = merged[:-1]
            pulled = torch.linalg.vector_norm(z[plan.synthetic_anchors] - synthetic, dim=1)
            apart = real > 0
            self.hardness = (pulled[apart] / real[apart]).mean().item() if apart.any() else 1.0

    def parameter_groups(self, lr: float, *, classifier_lr: float = 1e-3) -> list[dict[str, Any]]:
        """Optimizer groups: the propagation at ``lr``, the auxiliary classifier at ``classifier_lr``."""
        check_learning_rates(lr=lr, classifier_lr=classifier_lr)
        return [
            {"params": list(self.propagation.parameters()), "lr": lr},
            {"params": list(self.auxiliary_classifier.parameters()), "lr": classifier_lr},
        ]

    def cost(self, batch_size: int, samples_per_class: int = 2) -> StepCost:
        """What one training step will cost, before it is paid; the trunk and the wrapped loss come on top.

        It depends on the device, dtype and autocast that hold at the call, and on how much memory is free.

        Args:
            batch_size: B, references included.
            samples_per_class: of the batch. More of them give fewer synthetic negatives, each of which is classified:
                a small part of the cost, unless there are thousands of training classes.

        Raises:
            TypeError, ValueError: an argument is no positive integer.

        Warns:
            UserWarning: the step does not fit into the memory that is free.

        Example:
            >>> generator = GlobalCorrelationGenerator(num_classes=100, embedding_size=512)
            >>> print(generator.cost(81, samples_per_class=3))  # doctest: +ELLIPSIS
            batch of 81: 60.5 G multiply-adds, 0... GB (activations ...)
        """
        check_positive_int("batch_size", batch_size)
        check_positive_int("samples_per_class", samples_per_class)
        other_classes = max(-(-batch_size // samples_per_class) - 1, 0)
        sizes = self.propagation.sizes(batch_size, batch_size * other_classes)
        device = self.auxiliary_classifier.weight.device
        keeps, chunk = choose_memory(sizes, self.propagation.edge_chunk_size, device)
        return StepCost(batch_size, keeps, chunk, step_multiply_adds(sizes, keeps), step_bytes(sizes, keeps, chunk))

    @classmethod
    def of_real_negatives(
        cls, num_classes: int, embedding_size: int, *, merging: str = "hardest", **kwargs: Any
    ) -> "GlobalCorrelationGenerator":
        """Classification beside real negatives: λ = 1 in the equation of `generators.interpolation`, so that none is
        pulled, and nothing is propagated.

        Not the paper's method, but what had the largest mean gain with each of three losses in docs/evidence.md, on one
        small network.

        Args:
            num_classes: as in the constructor, and so is ``embedding_size``.
            merging: ``"hardest"``, the negative of each class that is most like the anchor; ``"random"``, a random mean
                of the class's, perhaps for a loss that looks for hard negatives by itself; or ``"mean"``.
            **kwargs: further options of the constructor. Unless ``num_layers`` is given, there are none, so that the
                classifier is linear, and no edge is computed.

        Raises:
            TypeError, ValueError: as the constructor; or ``coefficients`` or ``alpha`` is given.

        Example:
            >>> generator = GlobalCorrelationGenerator.of_real_negatives(num_classes=10, embedding_size=8)
            >>> generator.coefficients, generator.merging
            (1.0, 'hardest')
        """
        for name in ("coefficients", "alpha"):
            if name in kwargs:
                raise ValueError(f"{name} decides how far negatives are pulled, and here none is; got {kwargs[name]!r}")
        options = {"num_layers": 0, "num_heads": 1, **kwargs}
        return cls(num_classes, embedding_size, coefficients=1.0, alpha=0.0, merging=merging, **options)

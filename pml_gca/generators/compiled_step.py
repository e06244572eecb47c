"""What a training step computes of a plan, as one function of tensors that a compiler takes whole."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..correlation.correlations import Correlations
from ..correlation.edge_list import EdgeList
from ..correlation.objective import GenerationObjective
from ..utils.compiling import explained, with_own_cache
from ..utils.dtypes import matmul_dtype
from ..utils.host import to_device
from .batch import Batch
from .interpolation import pull_strength
from .interpolation_generator import InterpolationGenerator
from .merging import class_weights
from .planning import CandidatePlan
from .propagating import Propagating, differentiable_once
from .synthesis import synthesize

Wanted = tuple[bool, bool]  # J_gen, and J_aux
Names = tuple[str, ...]
StepValues = tuple[Tensor, Tensor, Tensor, tuple[Names, Names]]

MOVED = (
    "the generator was compiled on the device {} and is on {} now, where its graph stays as it was: call compile() "
    "after moving the loss"
)


class CompiledStep(Propagating, InterpolationGenerator):
    """A generator with a graph and an `objective`, whose step can be compiled.

    A subclass implements `classify_nodes`. One that overrides `objectives` computes it uncompiled.
    """

    objective: GenerationObjective
    classify_among: str
    _compiled_step: Callable[..., StepValues] | None = None
    _compiled_for: str | None = None  # type of the device

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what a training step computes here: the propagation; and merging, synthesis, J_gen and J_aux.

        Call it after moving the loss to its device. On a CPU the propagation stays as it is, which is faster there; it
        does so when the loss moves to a GPU later, until this is called again.

        With `fullgraph=True`, more sizes and settings than torch compiles raise a RuntimeError. Copies, pickles and
        losses loaded as a whole are not compiled: call this again.

        The second part is not compiled without gradients, in batches without negatives, under float16 autocast, and
        where processes share the edges. It computes all edges at once, whatever `edge_chunk_size` says. A step has the
        same values and gradients, up to rounding, and merges by the same random numbers. With `mode="reduce-overhead"`
        the next batch overwrites the negatives of this one. Second derivatives (`create_graph=True`) raise a
        RuntimeError.

        Args:
            *args, **kwargs: of `torch.compile`, such as `mode="reduce-overhead"`. Each number of nodes compiles the
                propagation anew, unless `dynamic` says otherwise.
        """
        super().compile(*args, **kwargs)
        self._compiled_step = explained(torch.compile(with_own_cache(step_values), *args, **kwargs))
        self._compiled_for = self.propagation.input.weight.device.type

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled function out of copies and pickles, as modules do."""
        return {name: value for name, value in super().__getstate__().items() if name != "_compiled_step"}

    def negatives(
        self,
        batch: Batch,
        graph: Correlations | None,
        edges: EdgeList,
        nodes: Tensor,
        coefficients: Tensor,
        plan: CandidatePlan,
        draws: Tensor,
        metric_level: Tensor | float,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute what the base class does, compiled if it is."""
        assert graph is not None
        # Without a gradient of the coefficients, CUDA graphs would take the propagation for finished, and overwrite it.
        learns = self.training and torch.is_grad_enabled() and coefficients.requires_grad
        in_half = matmul_dtype(self.objective.classifier.weight) == torch.float16  # J_soft then takes care of gradients
        step = self._compiled_step if type(self).objectives is CompiledStep.objectives else None
        if step is None or not learns or in_half or edges.processes is not None or len(plan.synthetic_anchors) == 0:
            return super().negatives(batch, graph, edges, nodes, coefficients, plan, draws, metric_level)
        if nodes.device.type != self._compiled_for:
            warnings.warn(MOVED.format(self._compiled_for, nodes.device.type), UserWarning, stacklevel=2)
        if batch.phase == "generation":
            nodes = nodes.detach()
        if not isinstance(metric_level, Tensor):
            metric_level = torch.tensor(metric_level, dtype=nodes.dtype, device="cpu")
        level = to_device(metric_level, nodes.device).clone()  # the running mean moves before the backward pass
        # Merging weights are the same for any bound of the largest class, and any batch takes one graph.
        plan = replace(plan, largest_class=2 ** max(len(nodes).bit_length(), 12))
        inputs = (nodes, coefficients, draws, level, batch.anchor_labels, plan, graph.listed)
        made = step(self.objective, *inputs, self.wanted(batch), self.alpha, self.merging, self.classify_among)
        synthetic, weights, values, (names, term_names) = made
        differentiable_once(synthetic, values)
        # The memory of CUDA graphs is written again by the next step, and these are kept for longer.
        split = iter(values.clone().unbind())
        weighted, terms = ({name: next(split) for name in group} for group in (names, term_names))
        # After the compiled part: its backward pass must not come between the propagation and that part.
        objectives = {**self.classify_nodes(batch, graph), **weighted}
        self.observe(**{**objectives, **terms})
        return synthetic, weights, objectives

    def objectives(
        self, batch: Batch, graph: Correlations | None, coefficients: Tensor, synthetic: Tensor, plan: CandidatePlan
    ) -> dict[str, Tensor]:
        """Return J_gce, J_gen and J_aux (section 3.5 of the paper). Only J_gce reaches the embeddings."""
        assert graph is not None
        objectives, nodes, wanted = self.classify_nodes(batch, graph), graph.embeddings.detach(), self.wanted(batch)
        labels, among, chunk = batch.anchor_labels, self.classify_among, graph.edge_chunk_size
        terms = terms_of(
            self.objective, nodes, coefficients, synthetic, labels, plan, graph.edges, wanted, among, chunk
        )
        objectives |= self.objective.weighted(terms)
        self.observe(**{**objectives, **terms})  # the unweighted term where both have one
        return objectives

    def wanted(self, batch: Batch) -> Wanted:
        """Return whether the batch wants J_gen, and J_aux."""
        return batch.wants("generation_loss"), batch.wants("auxiliary_classification_loss")

    def classify_nodes(self, batch: Batch, graph: Correlations) -> dict[str, Tensor]:
        """Return J_gce by name, with its gradient to the embeddings, if the batch wants it."""
        raise NotImplementedError


def step_values(
    objective: GenerationObjective,
    nodes: Tensor,
    coefficients: Tensor,
    draws: Tensor,
    metric_level: Tensor,
    labels: Tensor,
    plan: CandidatePlan,
    listed: EdgeList | None,
    wanted: Wanted,
    alpha: float,
    merging: str,
    classify_among: str,
) -> StepValues:
    """Return the negatives, their weights, and all terms in one tensor, with their names: weighted, unweighted.

    The arguments are the generator's, but not it: torch 2.4 cannot look into its `_modules` from compiled code.
    """
    weights = class_weights(merging, nodes, plan, draws)
    strength, edges = pull_strength(alpha, metric_level, nodes.dtype), listed or EdgeList(len(nodes))
    synthetic, learned = synthesize(nodes, coefficients, plan, weights, strength, edges=edges)
    terms = terms_of(objective, nodes.detach(), coefficients, learned, labels, plan, edges, wanted, classify_among)
    weighted = objective.weighted(terms)
    values = torch.stack([*weighted.values(), *terms.values()])
    return synthetic, weights, values, (tuple(weighted), tuple(terms))


def terms_of(
    objective: GenerationObjective,
    nodes: Tensor,
    coefficients: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    plan: CandidatePlan,
    edges: EdgeList,
    wanted: Wanted,
    classify_among: str,
    edge_chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return the unweighted terms of J_gen and J_aux by name.

    Args:
        objective: computes them.
        nodes: (N, D), detached.
        coefficients, synthetic, plan: as for `CompiledStep.objectives`.
        labels: (A,) long, of the anchors.
        edges: the list of edges.
        wanted: whether the terms of J_gen are wanted, and J_aux.
        classify_among: as for `GlobalCorrelationGenerator`.
        edge_chunk_size: edges computed at a time.
    """
    generates, learns_classes = wanted
    terms: dict[str, Tensor] = {}
    if generates:
        terms = objective(
            nodes,
            coefficients,
            synthetic,
            plan.synthetic_anchors,
            plan.synthetic_labels,
            edge_chunk_size,
            edges=edges,
            classes=plan.classes if classify_among == "batch" else None,
        )
    if learns_classes:
        terms.update(objective.classify(nodes[: len(labels)], labels))  # torch 2.4 compiles no `|=` of dictionaries
    return terms

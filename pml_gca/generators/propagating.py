"""Shared by generators with a graph: building it, its dtype, its chunks and its cost."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..correlation.correlations import Correlations
from ..correlation.cost import StepCost, choose_memory, step_bytes, step_multiply_adds
from ..correlation.edge_list import EdgeList
from ..correlation.exchanged import exchanged_values
from ..correlation.propagation import OF_EDGES, CorrelationPropagation
from ..utils.validation import check_number, check_positive_int


def build_propagation(
    num_classes: int,
    embedding_size: int,
    *,
    num_layers: int,
    num_heads: int | None,
    dropout: float,
    edge_chunk_size: int | None,
    with_coefficients: bool = True,
) -> CorrelationPropagation:
    """Check the options of a graph, and build it.

    Args:
        num_classes, embedding_size, num_layers, dropout, edge_chunk_size, with_coefficients: as for
            `CorrelationPropagation`.
        num_heads: H; the largest divisor of `embedding_size` up to 4 if None.

    Raises:
        TypeError, ValueError: an option is of the wrong type or out of range, or `embedding_size` is not divisible by
            `num_heads`.
    """
    check_positive_int("num_layers", num_layers, minimum=0)
    if num_heads is None:
        num_heads = next(heads for heads in (4, 3, 2, 1) if embedding_size % heads == 0)
    check_positive_int("num_heads", num_heads)
    if embedding_size % num_heads:
        raise ValueError(
            f"embedding_size must be divisible by num_heads, got {embedding_size} channels for {num_heads} heads"
        )
    check_number("dropout", dropout)
    if dropout >= 1:
        raise ValueError(f"dropout must be below 1, got {dropout}")
    if edge_chunk_size is not None:
        check_positive_int("edge_chunk_size", edge_chunk_size)
    return CorrelationPropagation(
        num_classes,
        embedding_size,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout=dropout,
        edge_chunk_size=edge_chunk_size,
        with_coefficients=with_coefficients,
    )


SHARED = (
    "a compiled propagation cannot share its edges with other processes: do not call generator.compile() or "
    "generator.propagation.compile(), or set shard_edges=False"
)
ONCE = "what is compiled has no second derivatives (create_graph=True): do not compile the generator or its propagation"


def is_compiled(module: nn.Module) -> bool:
    """Return whether calls of a module are compiled, by `module.compile()` or as the result of `torch.compile`."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def differentiable_once(*computed: Tensor) -> None:
    """Let a backward pass that records gradients (`create_graph=True`) raise when it reaches one of the tensors.

    Compiled functions would raise later, less clearly, or give wrong second derivatives, as the compiler decides.
    """
    for tensor in computed:
        if tensor.requires_grad:
            tensor.register_hook(_raise_if_recorded)


def _raise_if_recorded(grad: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(ONCE)


class Propagating:
    """A generator with a graph, `propagation`."""

    propagation: CorrelationPropagation

    def propagate_in(
        self, dtype: torch.dtype, nodes: Tensor, labels: Tensor, listed: EdgeList | None = None
    ) -> Correlations:
        """Propagate the graph of (N, D) nodes and (N,) labels, in `dtype` where parameters are narrower.

        PML casts the parameters of its losses to the dtype of the embeddings in the same way. Only `listed` edges are
        computed, all by default. Where processes share the edges, parameters get the gradient of the whole graph.

        Raises:
            RuntimeError: processes share the edges, and the propagation is compiled. In the backward pass: the
                propagation is compiled, and second derivatives are asked for.
        """
        compiled = is_compiled(self.propagation)
        if compiled and listed is not None and listed.processes is not None:
            raise RuntimeError(SHARED)
        parameters = dict(self.propagation.named_parameters())
        used = {name: p.to(torch.promote_types(p.dtype, dtype)) for name, p in parameters.items()}
        if listed is not None:
            names = [name for name in used if OF_EDGES.match(name)]
            used.update(zip(names, listed.enter(*(used[name] for name in names)), strict=True))
        if all(used[name] is own for name, own in parameters.items()):
            found: Correlations = self.propagation(nodes, labels, listed)
        else:
            found = functional_call(self.propagation, used, (nodes, labels, listed))
        if compiled:
            differentiable_once(found.node_logits, found.coefficients)
        return found

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the graph's propagation; on a CPU leave it as it is, which is faster there.

        Call it after moving the loss to its device: what it compiles does not change when the loss moves. To compile
        the propagation on a CPU nevertheless, call `generator.propagation.compile(...)`.

        Args:
            *args, **kwargs: of `torch.compile`, see `CorrelationPropagation.compile`.
        """
        if not self.is_on_cpu:
            self.propagation.compile(*args, **kwargs)

    @property
    def is_on_cpu(self) -> bool:
        """Whether the graph's parameters are on a CPU."""
        return self.propagation.input.weight.device.type == "cpu"

    @property
    def edge_chunk_size(self) -> int | None:
        """Edges computed at a time, see `GlobalCorrelationGenerator`; may be set."""
        return self.propagation.edge_chunk_size

    @edge_chunk_size.setter
    def edge_chunk_size(self, value: int | None) -> None:
        if value is not None:
            check_positive_int("edge_chunk_size", value)
        self.propagation.edge_chunk_size = value

    def count_soft_classes(self, num_nodes: int, samples_per_class: int) -> int:
        """Return how many classes J_soft tells a negative from: all."""
        return self.propagation.node_classifier.out_features

    def cost(
        self, batch_size: int, samples_per_class: int = 2, *, memory_size: int = 0, num_processes: int = 1
    ) -> StepCost:
        """Return the estimated cost of one training step; the trunk and the wrapped loss come on top.

        It depends on the device, dtype and autocast that hold at the call, and on how much memory is free.

        Args:
            batch_size: B, references included.
            samples_per_class: of the batch. More of them give fewer synthetic negatives to classify: a small part of
                the cost, unless there are thousands of training classes.
            memory_size: M, embeddings in a full memory, see `HardNegativeGenerationLoss`. Its samples are taken to be
                of as many classes as there can be.
            num_processes: W, processes that share the edges of the graph, see `HardNegativeGenerationLoss`: then the
                cost of one of them, on average.

        Raises:
            TypeError, ValueError: an argument is no positive integer; `memory_size` may be 0.

        Warns:
            UserWarning: the step does not fit into the memory that is free.

        Examples:
            >>> from pml_gca import GlobalCorrelationGenerator
            >>> generator = GlobalCorrelationGenerator(num_classes=100, embedding_size=512)
            >>> print(generator.cost(81, samples_per_class=3))  # doctest: +ELLIPSIS
            batch of 81: 60.5 G multiply-adds, 0... GB (activations ...)
        """
        check_positive_int("batch_size", batch_size)
        check_positive_int("samples_per_class", samples_per_class)
        check_positive_int("memory_size", memory_size, minimum=0)
        check_positive_int("num_processes", num_processes)
        num_nodes, graph = batch_size + memory_size, self.propagation
        num_negatives = graph.count_negatives(num_nodes, samples_per_class, memory_size)
        sizes = replace(
            graph.sizes(num_nodes, num_negatives, num_processes, memory_size),
            num_soft_classes=self.count_soft_classes(num_nodes, samples_per_class),
        )
        keeps, chunk = choose_memory(sizes, graph.edge_chunk_size, graph.input.weight.device)
        work, space = step_multiply_adds(sizes, keeps), step_bytes(sizes, keeps, chunk)
        return StepCost(batch_size, keeps, chunk, work, space, memory_size, num_processes, exchanged_values(sizes))

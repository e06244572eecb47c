"""Propagation of nodes and edges through K layers, to node logits and channel-wise coefficients.

Sections 3.2 and 3.3 of https://arxiv.org/abs/2411.13145. Edges are undirected: e_ij = e_ji holds at every layer. The
first edges are symmetric, and the edge update sees its two end nodes as a set.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compiling import explained
from ..utils.dtypes import matmul_dtype, uncached_without_gradient
from ..utils.running_statistics import check_not_recomputed
from .blocks import EdgeBlock, NodeBlock, ScaleBatchNorm, linear
from .correlations import Correlations
from .cost import Sizes
from .edge_list import EdgeList
from .edges import correlation_edges, edge_multiplicity
from .tiles import default_chunk_size

# Parameters that edges are computed with, by name. Their gradients are sums over the edges.
OF_EDGES = re.compile(
    r"layers\.\d+\.(node\.edge_to_node|edge\.(norm|expand|expand_norm|contract))\.|edge_(norm|coefficients)\."
)

propagate_in_sweeps: "Callable[[CorrelationPropagation, Tensor, Tensor, EdgeList | None], Correlations] | None"
try:  # computes the same in less time and memory
    from .sweeps import propagate as propagate_in_sweeps
except ImportError:  # the folder was deleted: `forward_plain` runs
    propagate_in_sweeps = None


class PropagationLayer(nn.Module):
    """One layer of propagation: nodes from nodes and edges, then edges from the new nodes.

    Args:
        embedding_size: D.
        num_heads: H.
        dropout: of the edge attention.
        is_first: whether this is the first layer: its nodes may be as long as embeddings are.
        updates_edges: whether there is an edge block; if not, edges stay as they are.
    """

    def __init__(
        self, embedding_size: int, num_heads: int, dropout: float, *, is_first: bool = True, updates_edges: bool = True
    ) -> None:
        super().__init__()
        self.node = NodeBlock(embedding_size, num_heads, any_length=is_first)
        self.edge = EdgeBlock(embedding_size, dropout) if updates_edges else None

    def forward(self, nodes: Tensor, edges: Tensor, listed: EdgeList, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next (N, D) nodes and (E, D) edges, as they are listed; `labels` is (N,)."""
        nodes = self.node(nodes, edges, listed, labels)
        return nodes, edges if self.edge is None else self.edge(nodes, edges, listed)


class CorrelationPropagation(nn.Module):
    """The graph: from embeddings and labels to node logits and channel-wise coefficients of all pairs.

    Sections 3.2 and 3.3 of the paper.

    Args:
        num_classes: classes of the node classifier.
        embedding_size: D, divisible by `num_heads`.
        num_layers: K, rounds of node and edge updates; with 0, outputs come from the first nodes and edges.
        num_heads: H, heads of the node attention.
        dropout: probability with which an edge ignores one of its end nodes, in training.
        edge_chunk_size: edges computed at a time, see `GlobalCorrelationGenerator`. May be changed later.
        with_coefficients: whether to compute λ. If not, nodes are only classified, and the modules that λ alone needs
            do not exist: the last layer's edge block, `edge_norm` and `edge_coefficients`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        num_layers: int,
        num_heads: int,
        dropout: float,
        edge_chunk_size: int | None = None,
        with_coefficients: bool = True,
    ) -> None:
        super().__init__()
        self.edge_chunk_size = edge_chunk_size
        self.with_coefficients = with_coefficients
        self.input = nn.Linear(embedding_size, embedding_size)
        self.layers = nn.ModuleList(
            PropagationLayer(
                embedding_size,
                num_heads,
                dropout,
                is_first=layer == 0,
                updates_edges=with_coefficients or layer < num_layers - 1,
            )
            for layer in range(num_layers)
        )
        self.node_norm = ScaleBatchNorm(embedding_size)
        self.node_classifier = nn.Linear(embedding_size, num_classes)
        if with_coefficients:
            self.edge_norm = ScaleBatchNorm(embedding_size)
            self.edge_coefficients = nn.Linear(embedding_size, embedding_size)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the propagation; arguments are those of `torch.compile`.

        Each number of nodes compiles anew, unless `dynamic` says otherwise. Node classification takes a second backward
        pass, which `torch.compile(propagation)` may refuse.
        """
        super().compile(*args, **{"dynamic": False, **kwargs})
        assert self._compiled_call_impl is not None
        self._compiled_call_impl = explained(self._compiled_call_impl)

    @property
    def has_edges(self) -> bool:
        """Whether anything is computed of edges."""
        return self.with_coefficients or len(self.layers) > 0

    def forward(self, embeddings: Tensor, labels: Tensor, listed: EdgeList | None = None) -> Correlations:
        """Propagate (N, D) embeddings with (N,) long labels, in any order and composition.

        Args:
            embeddings, labels: the nodes.
            listed: the edges to compute; all by default. If other processes compute the others, they call this with the
                same nodes. Gradients of parameters that match `OF_EDGES` are then sums over the own edges alone.

        Raises:
            RuntimeError: called inside activation checkpointing, in training.
        """
        if self.training and not torch.compiler.is_compiling():
            check_not_recomputed("the graph's propagation")
        with uncached_without_gradient(embeddings.device.type):
            # A compiler fuses operations and plans memory itself. Without layers there is nothing to sweep.
            if propagate_in_sweeps is None or torch.compiler.is_compiling() or not self.layers:
                return self.forward_plain(embeddings, labels, listed)
            return propagate_in_sweeps(self, embeddings, labels, listed)

    def forward_plain(self, embeddings: Tensor, labels: Tensor, listed: EdgeList | None = None) -> Correlations:
        """Propagate as the equations stand: all edges at once, autograd keeps every intermediate value."""
        dtype, listed = self.input.weight.dtype, listed or EdgeList(len(embeddings))
        pairs, (entered,) = listed.pairs(embeddings.device), listed.enter(embeddings)
        edges = entered.new_empty(0, entered.shape[1], dtype=dtype)
        if self.has_edges:
            edges = correlation_edges(entered, listed).to(dtype)
        nodes = self.first_nodes(embeddings)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, listed, labels)
        logits = self.node_classifier(self.node_norm(nodes[: listed.num_batch]).to(dtype))
        if self.with_coefficients:
            normalised = self.edge_norm(edges, edge_multiplicity(pairs), listed.everywhere).to(dtype)
            coefficients = self.edge_coefficients(normalised).sigmoid()
        else:
            coefficients = edges[:0]
        chunk = self.edge_chunk_size or default_chunk_size(embeddings.shape[1], embeddings.device)
        return Correlations(logits, coefficients, embeddings, chunk, listed=listed)

    def first_nodes(self, embeddings: Tensor) -> Tensor:
        """Return h⁰ = Linear(z), (N, D), in float32 or wider: h⁰ is as long as z, which half precision cannot hold."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return linear(self.input, embeddings.to(torch.promote_types(self.input.weight.dtype, torch.float32)))

    def count_negatives(self, num_nodes: int, samples_per_class: int, num_memory: int = 0) -> int:
        """Return how many synthetic negatives there are if each class has so many samples among the nodes."""
        classes, batch = -(-num_nodes // samples_per_class), num_nodes - num_memory
        if num_memory:  # which repeats classes
            classes = min(classes, max(self.node_classifier.out_features, -(-batch // samples_per_class)))
        return batch * max(classes - 1, 0)

    def sizes(self, num_nodes: int, num_negatives: int, num_shares: int = 1, num_memory: int = 0) -> Sizes:
        """Return the sizes that the cost of a step depends on, with the dtypes that hold now."""
        weight = self.input.weight
        return Sizes(
            num_nodes=num_nodes,
            embedding_size=self.input.in_features,
            num_layers=len(self.layers),
            num_classes=self.node_classifier.out_features,
            num_negatives=num_negatives,
            matmul_bytes=matmul_dtype(weight).itemsize,
            state_bytes=torch.promote_types(weight.dtype, torch.float32).itemsize,
            with_coefficients=self.with_coefficients,
            num_shares=num_shares,
            num_memory=num_memory,
        )

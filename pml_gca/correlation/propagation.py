"""Propagation of nodes and edges through K layers, to node logits and channel-wise coefficients.

Edges are undirected: e_ij = e_ji holds at every layer, because the first edges are symmetric and the edge update sees
its two end nodes as a set. Keys and values of the edge attention are computed per node, and its softmax over two end
nodes is a sigmoid of a score difference into which the query projection folds, so that no D x D product per edge is
left but the edge-to-node projection and the edge MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.dtypes import compute_dtype, matmul_dtype, uncached_without_gradient
from ..utils.recomputation import check_no_recomputation
from .blocks import EdgeBlock, NodeBlock, ScaleBatchNorm, linear
from .cost import Sizes, choose_memory, default_chunk_size
from .edges import correlation_edges, edge_multiplicity, edge_pairs, standardize, to_dense
from .sweeps import EdgeCoefficients, EdgeMessages, EdgeUpdate, SweepPlan, Wanted, edge_statistics
from .tiles import Tile, edge_tiles

EdgeState = tuple[Tensor, Tensor | None, Tensor | None]  # as pml_gca.correlation.sweeps.rows.EdgeRows takes it


@dataclass(frozen=True)
class Correlations:
    """What the graph says about a batch of N embeddings of D channels.

    Attributes:
        node_logits: (N, num_classes), class scores of the propagated nodes.
        pairs: (2, E) long, end nodes of the undirected edges, see `edge_pairs`.
        coefficients: (E, D) in (0, 1), channel-wise λ of each edge; 1 keeps a channel of a synthetic negative at
            the real negative, 0 pulls it to the distance of the positive. (0, D) where they were not asked for.
        tiles: portions of the edges that are best computed at a time; none if the propagation was compiled.
        wanted: what backward passes through the graph are for, where that can be chosen.
    """

    node_logits: Tensor
    pairs: Tensor
    coefficients: Tensor
    tiles: Sequence[Tile]
    wanted: Wanted | None = None

    def dense(self) -> Tensor:
        """The coefficients as a symmetric (N, N, D) tensor."""
        return to_dense(self.coefficients, len(self.node_logits))

    def mean_coefficients(self) -> Tensor:
        """Channel means of the coefficients: (N, N), symmetric."""
        return to_dense(self.coefficients.mean(dim=1), len(self.node_logits))


class PropagationLayer(nn.Module):
    """One round: nodes from nodes and, with ``edge_messages``, edges; then edges from the new nodes."""

    def __init__(
        self, embedding_size: int, num_heads: int, dropout: float, edge_messages: bool = True, is_first: bool = True
    ) -> None:
        super().__init__()
        self.edge_messages = edge_messages
        self.node = NodeBlock(embedding_size, num_heads, any_length=is_first)
        self.edge = EdgeBlock(embedding_size, dropout)
        if not edge_messages:
            self.node.edge_to_node.requires_grad_(False)  # distributed training would wait for its gradient

    def forward(
        self, nodes: Tensor, edges: Tensor, pairs: Tensor, labels: Tensor, update_edges: bool = True
    ) -> tuple[Tensor, Tensor]:
        if self.edge_messages:
            nodes = self.node(nodes, edges, pairs, labels)
        else:
            nodes = self.node.listen(nodes, labels)
            nodes = self.node.gather(nodes, torch.zeros_like(nodes))
        return nodes, self.edge(nodes, edges, pairs) if update_edges else edges

    def sweep(
        self, plan: SweepPlan, nodes: Tensor, edges: EdgeState, labels: Tensor, update_edges: bool = True
    ) -> tuple[Tensor, EdgeState]:
        """As `forward`, tile by tile."""
        to_node, block = self.node.edge_to_node, self.edge
        heard = self.node.listen(nodes, labels, plan.keep_hidden)
        messages = torch.zeros_like(heard, dtype=edges[0].dtype)
        if self.edge_messages:
            messages = EdgeMessages.apply(plan, len(nodes), *edges, to_node.weight, to_node.bias)
        nodes = self.node.gather(heard, messages)
        if not update_edges:
            return nodes, edges
        dtype = messages.dtype
        ends = [x.to(dtype) for x in block.fold(nodes)]
        mask = (
            block.dropout(messages.new_ones(2, plan.num_edges)) if block.dropout.training and block.dropout.p else None
        )
        norm = (block.norm.weight.to(dtype), block.norm.bias.to(dtype))
        kept = EdgeUpdate.apply(plan, *edges, *ends, mask, *norm, *block.mlp())
        return nodes, (kept, *norm)


class CorrelationPropagation(nn.Module):
    """Embeddings and labels to node logits and channel-wise coefficients of all pairs (sections 3.2–3.3 of the paper).

    Args:
        num_classes: classes of the node classifier.
        embedding_size: D, divisible by ``num_heads``.
        num_layers: K, rounds of node and edge updates; with 0 the embeddings are read off as they are.
        num_heads: H, heads of the node attention.
        dropout: probability with which an edge ignores one of its end nodes, in training.
        edge_chunk_size: edges computed at a time, see `GlobalCorrelationGenerator`.
        edge_messages: whether nodes hear their edges.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        edge_chunk_size: int | None = None,
        edge_messages: bool = True,
    ) -> None:
        super().__init__()
        self.edge_chunk_size = edge_chunk_size
        self.edge_messages = edge_messages
        self._memory: dict[tuple[object, ...], tuple[bool, int]] = {}
        self.input = nn.Linear(embedding_size, embedding_size)
        self.layers = nn.ModuleList(
            PropagationLayer(embedding_size, num_heads, dropout, edge_messages, is_first=layer == 0)
            for layer in range(num_layers)
        )
        self.node_norm = ScaleBatchNorm(embedding_size)
        self.node_classifier = nn.Linear(embedding_size, num_classes)
        self.edge_norm = ScaleBatchNorm(embedding_size)
        self.edge_coefficients = nn.Linear(embedding_size, embedding_size)

    def __getstate__(self) -> dict[str, Any]:
        """What fits here need not fit where a copy goes."""
        return {**self.__dict__, "_memory": {}}

    def forward(self, embeddings: Tensor, labels: Tensor, with_coefficients: bool = True) -> Correlations:
        """(N, D) embeddings and (N,) long labels, in any order and composition, to `Correlations`.

        Without coefficients, updates of the edges that serve these alone are not computed: of one layer a ninth of the
        work remains.
        """
        if self.training and not torch.compiler.is_compiling():
            check_no_recomputation("the graph's propagation")
        with uncached_without_gradient(embeddings.device.type):
            return self._forward(embeddings, labels, with_coefficients)

    def _forward(self, embeddings: Tensor, labels: Tensor, with_coefficients: bool) -> Correlations:
        # The compiler fuses, and chooses what to keep, by itself; and without layers there is nothing to sweep.
        if torch.compiler.is_compiling() or not self.layers:
            return self.forward_plain(embeddings, labels, with_coefficients)
        dtype = self.input.weight.dtype
        plan = self.plan_sweeps(len(embeddings), embeddings.device, with_coefficients)
        pairs = edge_pairs(len(embeddings), embeddings.device)
        nodes = self._first_nodes(embeddings)
        edges: EdgeState = (standardize(embeddings).to(compute_dtype(self.input.weight)), None, None)
        for layer in self.layers:
            assert isinstance(layer, PropagationLayer)
            nodes, edges = layer.sweep(plan, nodes, edges, labels, with_coefficients or self._is_heard(layer))
        logits = self.node_classifier(self.node_norm(nodes).to(dtype))
        coefficients = self._sweep_coefficients(plan, edges) if with_coefficients else edges[0][:0]
        return Correlations(logits, pairs, coefficients, plan.tiles, plan.wanted)

    def forward_plain(self, embeddings: Tensor, labels: Tensor, with_coefficients: bool = True) -> Correlations:
        """`forward` written plainly: all edges at once, and every intermediate value kept for the gradient."""
        dtype = self.input.weight.dtype
        pairs = edge_pairs(len(embeddings), embeddings.device)
        edges = correlation_edges(embeddings, pairs).to(dtype)
        nodes = self._first_nodes(embeddings)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, pairs, labels, with_coefficients or self._is_heard(layer))
        logits = self.node_classifier(self.node_norm(nodes).to(dtype))
        if not with_coefficients:
            return Correlations(logits, pairs, edges[:0], ())
        normalised = self.edge_norm(edges, edge_multiplicity(pairs)).to(dtype)
        return Correlations(logits, pairs, self.edge_coefficients(normalised).sigmoid(), ())

    def _first_nodes(self, embeddings: Tensor) -> Tensor:
        """(N, D), in float32 or wider: they are as long as the embeddings, for which half precision is too narrow."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return linear(self.input, embeddings.to(compute_dtype(self.input.weight)))

    def coefficient_modules(self) -> list[nn.Module]:
        """What only coefficients need."""
        unheard = [
            layer.edge for layer in self.layers if isinstance(layer, PropagationLayer) and not self._is_heard(layer)
        ]
        return [*unheard, self.edge_norm, self.edge_coefficients]

    def _is_heard(self, layer: nn.Module) -> bool:
        """Whether nodes hear the edges that a layer has updated."""
        return self.edge_messages and layer is not self.layers[-1]

    def plan_sweeps(self, num_nodes: int, device: torch.device, with_coefficients: bool = True) -> SweepPlan:
        """How to go over the edges of ``num_nodes`` nodes; what fits is asked once per number of nodes."""
        dtype = matmul_dtype(self.input.weight)
        learns = torch.is_grad_enabled()
        key = (num_nodes, device, dtype, self.edge_chunk_size, with_coefficients)
        if learns and key not in self._memory:
            sizes = self.sizes(num_nodes, num_nodes * max(num_nodes // 2 - 1, 0), with_coefficients)
            self._memory[key] = choose_memory(sizes, self.edge_chunk_size, device)
        keep, chunk = self._memory.get(key, (False, 0))
        tile = chunk or self.edge_chunk_size or default_chunk_size(self.input.in_features, device)
        num_edges = num_nodes * (num_nodes + 1) // 2
        return SweepPlan(list(edge_tiles(num_nodes, tile)), num_edges, dtype, keep and learns)

    def sizes(self, num_nodes: int, num_negatives: int, with_coefficients: bool = True) -> Sizes:
        """What the cost of a step depends on, at present."""
        linear = self.input
        return Sizes(
            num_nodes,
            linear.in_features,
            len(self.layers),
            self.node_classifier.out_features,
            num_negatives,
            matmul_dtype(linear.weight).itemsize,
            compute_dtype(linear.weight).itemsize,
            with_coefficients,
            self.edge_messages,
        )

    def _sweep_coefficients(self, plan: SweepPlan, edges: EdgeState) -> Tensor:
        kept, norm_weight, norm_bias = edges
        assert norm_weight is not None
        assert norm_bias is not None
        norm, count = self.edge_norm, None
        mean, variance = norm.running_mean, norm.running_var
        if norm.training and plan.num_edges > 0:
            count, mean, variance = edge_statistics(plan, kept, norm_weight, norm_bias)
            if plan.num_edges > 1 and torch.is_grad_enabled():
                norm.observe(count, mean, variance)
        rstd = torch.rsqrt(variance.to(kept.dtype) + norm.eps)
        linear, scale = self.edge_coefficients, norm.weight.to(kept.dtype)
        coefficients: Tensor = EdgeCoefficients.apply(
            plan, kept, norm_weight, norm_bias, count, mean.to(kept.dtype), rstd, scale, linear.weight, linear.bias
        )
        return coefficients

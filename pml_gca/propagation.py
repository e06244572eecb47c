"""Propagation of nodes and edges through K layers, to node logits and channel-wise coefficients.

Edges are undirected: e_ij = e_ji holds at every layer, because the first edges are symmetric and the edge update sees
its two end nodes as a set. Keys and values of the edge attention are computed per node, and its softmax over two end
nodes is a sigmoid of a score difference into which the query projection folds, so that no D x D product per edge is
left but the edge-to-node projection and the edge MLP.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cost import Sizes, choose_memory, default_chunk_size
from .graph import (
    at_ends,
    compute_dtype,
    correlation_edges,
    edge_multiplicity,
    edge_pairs,
    standardize,
    sum_over_neighbours,
    to_dense,
)
from .sweeps import EdgeCoefficients, EdgeMessages, EdgeUpdate, SweepPlan, Wanted, edge_statistics
from .tiles import Tile, edge_tiles

EdgeState = tuple[Tensor, Tensor | None, Tensor | None]  # as pml_gca.sweeps.EdgeRows takes it


@dataclass(frozen=True)
class Correlations:
    """What the graph says about a batch of N embeddings of D channels.

    Attributes:
        node_logits: (N, num_classes), class scores of the propagated nodes.
        pairs: (2, E) long, end nodes of the undirected edges, self pairs included, ``pairs[0] <= pairs[1]``.
        coefficients: (E, D) in (0, 1), channel-wise λ of each edge; 1 keeps a channel of a synthetic negative at
            the real negative, 0 pulls it to the distance of the positive.
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


class ScaleBatchNorm(nn.Module):
    """Batch normalisation with a learned scale, no shift, and a weight per row.

    Statistics are those of the rows repeated as often as their weights say (an undirected edge stands for two ordered
    pairs). They are computed in float32 or wider, whatever autocast does. In training a single row normalises to zero
    and leaves the running statistics alone, since it has no variance; no rows at all are passed through.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, row_weights: Tensor | None = None) -> Tensor:
        """Normalise ``x`` (R, D) with optional ``row_weights`` (R,); returns (R, D) in float32 or wider."""
        x = x.to(compute_dtype(x))
        if self.training and len(x) > 0:
            # Products and sums, not matrix products: neither autocast nor TF32 touches these.
            weights = x.new_ones(len(x), 1) if row_weights is None else row_weights.to(x.dtype)[:, None]
            count = weights.sum()
            mean = (x * weights).sum(dim=0) / count
            centred = x - mean
            variance = (centred.square() * weights).sum(dim=0) / count
            if len(x) > 1:
                self.observe(count, mean, variance)
        else:
            centred, variance = x - self.running_mean, self.running_var
        return centred * (torch.rsqrt(variance + self.eps) * self.weight)

    @torch.no_grad()
    def observe(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics take in those of a batch: weight of all rows, and (D,) mean and variance."""
        unbiased = variance.detach() * count / (count - 1)
        # A batch that is not finite is refused, but a device may say so only after this.
        is_finite = torch.isfinite(mean).all() & torch.isfinite(unbiased).all()
        for running, new in ((self.running_mean, mean.detach()), (self.running_var, unbiased)):
            running.copy_(torch.where(is_finite, torch.lerp(running, new.to(running.dtype), self.momentum), running))
        self.num_batches_tracked += is_finite


def negative_attention(query: Tensor, key: Tensor, value: Tensor, labels: Tensor, num_heads: int) -> Tensor:
    r"""Multi-head attention of every node over the nodes of other classes, with a zero-score sink.

    .. math:: w_{ij} = \exp(s_{ij}) / (1 + \sum_{j: y_j \ne y_i} \exp(s_{ij})), \quad s_{ij} = q_i k_j / \sqrt{D/H}

    The 1 is one more key and value of zeros: a node without negatives gets a zero message.

    Args:
        query, key, value: (N, D).
        labels: (N,) long.
        num_heads: H, a divisor of D.

    Returns:
        (N, D), the heads' messages side by side.
    """
    with_sink = [F.pad(x, (0, 0, 0, 1)) for x in (key, value)]
    q, k, v = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (query, *with_sink))
    visible = F.pad(labels[:, None] != labels, (0, 1), value=True)
    message = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=visible[None, None])
    return message[0].transpose(0, 1).flatten(1)


class NodeBlock(nn.Module):
    """Nodes listen to their negatives, then to all their edges, then pass a feed-forward net; post-norm throughout."""

    def __init__(self, embedding_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(embedding_size, embedding_size)
        self.key = nn.Linear(embedding_size, embedding_size)
        self.value = nn.Linear(embedding_size, embedding_size)
        self.out = nn.Linear(embedding_size, embedding_size)
        self.edge_to_node = nn.Linear(embedding_size, embedding_size)
        self.expand = nn.Linear(embedding_size, 4 * embedding_size)
        self.contract = nn.Linear(4 * embedding_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)

    def listen(self, nodes: Tensor, labels: Tensor) -> Tensor:
        """(N, D) nodes and (N,) labels to nodes that have heard their negatives, (N, D)."""
        heads = negative_attention(self.query(nodes), self.key(nodes), self.value(nodes), labels, self.num_heads)
        return self.norm(F.gelu(nodes + self.out(heads)))

    def gather(self, nodes: Tensor, messages: Tensor) -> Tensor:
        """(N, D) nodes and sums of their edges' messages, (N, D), through the feed-forward net to (N, D)."""
        nodes = self.norm(F.gelu(nodes + messages.to(nodes.dtype)))
        return self.norm(F.gelu(nodes + self.contract(F.gelu(self.expand(nodes)))))

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Tensor, labels: Tensor) -> Tensor:
        """(N, D) nodes, (E, D) edges, (2, E) pairs, (N,) labels to (N, D) nodes."""
        nodes = self.listen(nodes, labels)
        messages = sum_over_neighbours(F.gelu(self.edge_to_node(edges)), pairs, len(nodes))
        return self.gather(nodes, messages)


class EdgeBlock(nn.Module):
    """Every edge attends, with one head, to its two end nodes, then passes an MLP; post-norm throughout."""

    def __init__(self, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.node_to_edge = nn.Linear(embedding_size, embedding_size)
        self.query = nn.Linear(embedding_size, embedding_size)
        self.key = nn.Linear(embedding_size, embedding_size)
        self.value = nn.Linear(embedding_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.expand = nn.Linear(embedding_size, 4 * embedding_size)
        self.expand_norm = nn.LayerNorm(4 * embedding_size)
        self.contract = nn.Linear(4 * embedding_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)

    def mlp(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases of the MLP, the scale and shift of its LayerNorm folded into the second ones."""
        contract, norm = self.contract, self.expand_norm
        shift = (contract.weight * norm.bias).sum(dim=1)
        return self.expand.weight, self.expand.bias, contract.weight * norm.weight, contract.bias + shift

    def fold(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""What edges attend to, per node: u = Qᵀ K g (N, D), c = b_Q · K g (N,) and V g (N, D)."""
        g = F.gelu(self.node_to_edge(nodes))
        keys = self.key(g)
        return keys @ self.query.weight, keys @ self.query.bias, self.value(g)

    def attend(self, nodes: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        r"""Attention of each edge to its end nodes, per undirected edge.

        With u and c of :meth:`fold`, the score difference of the two ends is
        :math:`(e_{ij} \cdot (u_i - u_j) + c_i - c_j)/\sqrt{D}`, and the softmax over two is its sigmoid.
        """
        folded, offset, values = self.fold(nodes)
        folded_i, folded_j = at_ends(folded, pairs)
        offset_i, offset_j = at_ends(offset, pairs)
        value_i, value_j = at_ends(values, pairs)
        difference = (edges * (folded_i - folded_j)).sum(dim=1) + (offset_i - offset_j)
        difference = difference / math.sqrt(edges.shape[1])
        weights = self.dropout(torch.stack([difference, -difference]).sigmoid())
        return weights[0, :, None] * value_i + weights[1, :, None] * value_j

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """(N, D) nodes, (E, D) edges, (2, E) pairs to (E, D) edges."""
        edges = self.norm(F.gelu(self.attend(nodes, edges, pairs) + edges))
        hidden = self.expand_norm(F.gelu(self.expand(edges)))
        return self.norm(F.gelu(self.contract(hidden) + edges))


class PropagationLayer(nn.Module):
    """One round: nodes from nodes and edges, then edges from the new nodes."""

    def __init__(self, embedding_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.node = NodeBlock(embedding_size, num_heads)
        self.edge = EdgeBlock(embedding_size, dropout)

    def forward(self, nodes: Tensor, edges: Tensor, pairs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nodes = self.node(nodes, edges, pairs, labels)
        return nodes, self.edge(nodes, edges, pairs)

    def sweep(self, plan: SweepPlan, nodes: Tensor, edges: EdgeState, labels: Tensor) -> tuple[Tensor, EdgeState]:
        """As :meth:`forward`, tile by tile."""
        to_node, block = self.node.edge_to_node, self.edge
        heard = self.node.listen(nodes, labels)
        messages = EdgeMessages.apply(plan, len(nodes), *edges, to_node.weight, to_node.bias)
        nodes = self.node.gather(heard, messages)
        dtype = messages.dtype
        ends = [x.to(dtype) for x in block.fold(nodes)]
        mask = block.dropout(messages.new_ones(2, plan.num_edges)) if self.training and block.dropout.p else None
        norm = (block.norm.weight.to(dtype), block.norm.bias.to(dtype))
        kept = EdgeUpdate.apply(plan, *edges, *ends, mask, *norm, *block.mlp())
        return nodes, (kept, *norm)


class CorrelationPropagation(nn.Module):
    """Embeddings and labels to node logits and channel-wise coefficients of all pairs (sections 3.2–3.3 of the paper).

    Args:
        num_classes: classes of the node classifier.
        embedding_size: D, divisible by ``num_heads``.
        num_layers: K, rounds of node and edge updates.
        num_heads: H, heads of the node attention.
        dropout: probability with which an edge ignores one of its end nodes, in training.
        edge_chunk_size: edges computed at a time, see :class:`pml_gca.GlobalCorrelationGenerator`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        edge_chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.edge_chunk_size = edge_chunk_size
        self._memory: dict[tuple[object, ...], tuple[bool, int]] = {}
        self.input = nn.Linear(embedding_size, embedding_size)
        self.layers = nn.ModuleList(PropagationLayer(embedding_size, num_heads, dropout) for _ in range(num_layers))
        self.node_norm = ScaleBatchNorm(embedding_size)
        self.node_classifier = nn.Linear(embedding_size, num_classes)
        self.edge_norm = ScaleBatchNorm(embedding_size)
        self.edge_coefficients = nn.Linear(embedding_size, embedding_size)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Correlations:
        """(N, D) embeddings and (N,) long labels, in any order and composition, to :class:`Correlations`."""
        if torch.compiler.is_compiling():
            return self.forward_plain(embeddings, labels)  # the compiler fuses, and chooses what to keep, by itself
        dtype = self.input.weight.dtype
        plan = self.plan_sweeps(len(embeddings), embeddings.device)
        pairs = edge_pairs(len(embeddings), embeddings.device)
        nodes: Tensor = self.input(embeddings.to(dtype))
        edges: EdgeState = (standardize(embeddings).to(compute_dtype(self.input.weight)), None, None)
        for layer in self.layers:
            assert isinstance(layer, PropagationLayer)
            nodes, edges = layer.sweep(plan, nodes, edges, labels)
        logits = self.node_classifier(self.node_norm(nodes).to(dtype))
        return Correlations(logits, pairs, self._sweep_coefficients(plan, edges), plan.tiles, plan.wanted)

    def forward_plain(self, embeddings: Tensor, labels: Tensor) -> Correlations:
        """:meth:`forward` written plainly: all edges at once, and every intermediate value kept for the gradient."""
        dtype = self.input.weight.dtype
        pairs = edge_pairs(len(embeddings), embeddings.device)
        edges = correlation_edges(embeddings, pairs).to(dtype)
        nodes = self.input(embeddings.to(dtype))
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, pairs, labels)
        logits = self.node_classifier(self.node_norm(nodes).to(dtype))
        normalised = self.edge_norm(edges, edge_multiplicity(pairs)).to(dtype)
        return Correlations(logits, pairs, self.edge_coefficients(normalised).sigmoid(), ())

    def plan_sweeps(self, num_nodes: int, device: torch.device) -> SweepPlan:
        """How to go over the edges of ``num_nodes`` nodes; what fits is asked once per number of nodes."""
        dtype = matmul_dtype(self.input.weight)
        learns = torch.is_grad_enabled()
        key = (num_nodes, device, dtype, self.edge_chunk_size)
        if learns and key not in self._memory:
            sizes = self.sizes(num_nodes, num_nodes * max(num_nodes // 2 - 1, 0))
            self._memory[key] = choose_memory(sizes, self.edge_chunk_size, device)
        keep, chunk = self._memory.get(key, (False, 0))
        tile = chunk or self.edge_chunk_size or default_chunk_size(self.input.in_features, device)
        num_edges = num_nodes * (num_nodes + 1) // 2
        return SweepPlan(list(edge_tiles(num_nodes, tile)), num_edges, dtype, keep and learns)

    def sizes(self, num_nodes: int, num_negatives: int) -> Sizes:
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
        )

    def _sweep_coefficients(self, plan: SweepPlan, edges: EdgeState) -> Tensor:
        kept, norm_weight, norm_bias = edges
        assert norm_weight is not None
        assert norm_bias is not None
        norm, count = self.edge_norm, None
        mean, variance = norm.running_mean, norm.running_var
        if self.training and plan.num_edges > 0:
            count, mean, variance = edge_statistics(plan, kept, norm_weight, norm_bias)
            if plan.num_edges > 1:
                norm.observe(count, mean, variance)
        rstd = torch.rsqrt(variance.to(kept.dtype) + norm.eps)
        linear, scale = self.edge_coefficients, norm.weight.to(kept.dtype)
        coefficients: Tensor = EdgeCoefficients.apply(
            plan, kept, norm_weight, norm_bias, count, mean.to(kept.dtype), rstd, scale, linear.weight, linear.bias
        )
        return coefficients


def matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``weight``: that of autocast, which leaves float64 alone, or its own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype

"""The structured graph over a batch: embeddings become nodes, channel-wise correlations become undirected edges.

Axis legend for this package: N nodes, E = N(N + 1)/2 undirected edges (self pairs included), D channels, H heads.
Method: Peng et al., "Globally Correlation-Aware Hard Negative Generation", IJCV 2024, https://arxiv.org/abs/2411.13145

The last M nodes may be a memory of past batches. Memory nodes have no edges among each other, and none to themselves:
with B = N − M there are E = B(B + 1)/2 + B M edges. Let 𝒩(i) be the nodes that share an edge with node i: all N nodes
for a node of the batch, itself included; the B nodes of the batch for a memory node. All equations hold with "all j"
read as "j ∈ 𝒩(i)":

- attention: w_ij = exp(s_ij) / (1 + Σ_{j ∈ 𝒩(i), y_j ≠ y_i} exp(s_ij)). A memory node hears negatives of the batch.
- messages: b_i = norm(a_i + B/|𝒩(i)| Σ_{j ∈ 𝒩(i)} GELU(Linear(e_ij))), B times their mean: the sum over all j without a
  memory. A plain sum would grow with the memory and drown a_i, and differ between the batch and the memory.
- edges: t_ij and e_ij as before, for the E edges; both ends are updated nodes, memory nodes included.
- BatchNorm before λ: over the B² + 2 B M ordered pairs (i, j), j ∈ 𝒩(i). BatchNorm before the node logits: over the B
  nodes of the batch; memory nodes get no logits.
- J_div = 1 − √(Σ_i Σ_{j ∈ 𝒩(i)} ‖λ_ij − mean_{j ∈ 𝒩(i)} λ_ij‖² / (B² + 2 B M)).

Everything else sums over anchors, which are in the batch.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..utils.norms import scale_of

if TYPE_CHECKING:
    from .edge_list import EdgeList


def standardize(embeddings: Tensor) -> Tensor:
    r"""Centre each embedding over its channels and scale it to unit length.

    $$\hat{x}_i = (z_i - \bar{z}_i) / \lVert z_i - \bar{z}_i \rVert$$

    An embedding whose channels are all equal, such as a zero vector, correlates with nothing. It becomes the zero
    vector and gets no gradient; otherwise it would become the noise that rounding leaves behind.

    Args:
        embeddings: (N, D), floating.

    Returns:
        (N, D), in float32 or wider.
    """
    z = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    z = z / scale_of(z)
    centred = z - z.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(centred.detach(), dim=1, keepdim=True)
    rounding = 8 * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(z.detach(), dim=1, keepdim=True)
    constant = norm <= rounding
    varied = torch.where(constant, 1.0, centred)
    return torch.where(constant, 0.0, varied / torch.linalg.vector_norm(varied, dim=1, keepdim=True))


def count_edges(num_nodes: int, first_ends: range | None = None, num_memory: int = 0) -> int:
    """Return how many undirected edges there are whose first end lies in a range of nodes, all by default."""
    circle = num_nodes - num_memory
    if first_ends is None:
        return circle * (circle + 1) // 2 + circle * num_memory
    # Half way round an even circle, only the first half of the nodes lists an edge.
    half_way = 0 if circle % 2 else max(min(first_ends.stop, circle // 2) - first_ends.start, 0)
    return ((circle + 1) // 2 + num_memory) * len(first_ends) + half_way


def edge_pairs(
    num_nodes: int, device: torch.device | None = None, first_ends: range | None = None, num_memory: int = 0
) -> Tensor:
    """Return the end nodes of every undirected edge, self pairs included, in circulant order.

    Edges are sorted by the offset d from their first to their second end, around the circle of nodes, and then by
    their first end: all (i, i), then all (i, i + 1 mod N), and so on. In this order edges meet their ends without a
    lookup: the first ends of one offset are the list of nodes, the second ends that list turned by d.

    With a memory, that circle holds the B nodes of the batch. Behind its edges are listed those to the memory: all
    (i, B), then all (i, B + 1), and so on.

    Args:
        num_nodes: N.
        device: of the result.
        first_ends: list only edges whose first end lies in this range of nodes.
        num_memory: M, how many of the last nodes are a memory.

    Returns:
        (2, E) long; E = N(N + 1)/2 for all edges, or B(B + 1)/2 + B M with a memory.
    """
    circle = num_nodes - num_memory
    edge = torch.arange(count_edges(circle, first_ends), device=device)
    width = max(circle if first_ends is None else len(first_ends), 1)  # edges of one offset
    first = edge % width
    if first_ends is not None:
        first += first_ends.start
    pairs = torch.stack([first, (first + edge // width) % max(circle, 1)])
    if not num_memory:
        return pairs
    start, stop = (0, circle) if first_ends is None else (first_ends.start, first_ends.stop)
    memory, own = torch.arange(circle, num_nodes, device=device), torch.arange(start, stop, device=device)
    to_memory = torch.stack([own.repeat(num_memory), memory.repeat_interleave(stop - start)])
    return torch.cat([pairs, to_memory], dim=1)


def edge_index(num_nodes: int, device: torch.device | None = None) -> Tensor:
    """Return the position in `edge_pairs` of the edge between any two nodes: (N, N) long, symmetric."""
    node = torch.arange(num_nodes, device=device)
    there = (node - node[:, None]) % max(num_nodes, 1)
    forth, back = there * num_nodes + node[:, None], there.t() * num_nodes + node
    return torch.minimum(forth, back)  # the shorter way round; half way round, only one way is listed


def edge_multiplicity(pairs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return how many of the N² ordered pairs each edge stands for: (E,), 1 for a self pair, else 2."""
    return (2 - (pairs[0] == pairs[1]).long()).to(dtype)


def at_ends(node_values: Tensor, listed: "EdgeList") -> tuple[Tensor, Tensor]:
    """Return the (N, ...) values of nodes at the first and at the second end of every edge, each (E, ...)."""
    pairs = listed.pairs(node_values.device)
    if listed.is_whole_circle:
        found: tuple[Tensor, Tensor] = ValuesAtEnds.apply(node_values, pairs)
        return found
    return node_values.index_select(0, pairs[0]), node_values.index_select(0, pairs[1])


def sum_at_ends(at_first: Tensor, at_second: Tensor, num_nodes: int) -> Tensor:
    """Return the sum of all edges' values at their first ends and at their second ends, for each node.

    In circulant order these are sums over the offsets. A device needs no atomic additions for them, which are slow and
    round differently each time.

    Args:
        at_first, at_second: (E, ...), of all edges of a graph without a memory, as `edge_pairs` lists them.
        num_nodes: N.

    Returns:
        (N, ...), in float32 or wider.
    """
    offset, node = (torch.arange(n, device=at_first.device) for n in (num_nodes // 2 + 1, num_nodes))
    offset, dtype = offset[:, None], torch.promote_types(at_first.dtype, torch.float32)
    total = at_first.new_zeros((), dtype=dtype)
    for values, start in ((at_first, node), (at_second, (node - offset) % max(num_nodes, 1))):
        rows = offset * num_nodes + start  # of the edges that start, or end, in each node
        # Half way round an even circle, only the first half of the nodes starts an edge.
        listed = (rows < len(values)).view(*rows.shape, *[1] * (values.ndim - 1))
        total = total + values[rows.clamp_max(len(values) - 1)].where(listed, 0.0).sum(dim=0, dtype=dtype)
    return total


class ValuesAtEnds(torch.autograd.Function):
    """Compute `at_ends` for all edges of a graph without a memory; the gradient is `sum_at_ends`."""

    @staticmethod
    def forward(ctx: Any, node_values: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.num_nodes = len(node_values)
        return node_values.index_select(0, pairs[0]), node_values.index_select(0, pairs[1])

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[Tensor, None]:
        return sum_at_ends(grad_first, grad_second, ctx.num_nodes).to(grad_first.dtype), None


def correlation_edges(embeddings: Tensor, listed: "EdgeList") -> Tensor:
    r"""Return the first edges; the sum of an edge over its channels is the Pearson correlation.

    $$e^0_{ij} = \hat{x}_i \odot \hat{x}_j$$

    Args:
        embeddings: (N, D), floating.
        listed: the edges.

    Returns:
        (E, D), in float32 or wider.
    """
    first, second = at_ends(standardize(embeddings), listed)
    return first * second


def sum_over_neighbours(edge_values: Tensor, listed: "EdgeList") -> Tensor:
    """Return the sum over all edges that end in a node, for each node; a self pair counts once.

    Args:
        edge_values: (E, D).
        listed: the edges.

    Returns:
        (N, D), accumulated in float32 or wider.
    """
    values = edge_values.to(torch.promote_types(edge_values.dtype, torch.float32))
    pairs = listed.pairs(values.device)
    if listed.is_whole_circle:
        summed: Tensor = SumOverNeighbours.apply(values, pairs, listed.num_nodes)
        return summed
    total = values.new_zeros(listed.num_nodes, values.shape[1])
    return total.index_add(0, pairs[0], values).index_add(0, pairs[1], values * off_diagonal(pairs, values))


def off_diagonal(pairs: Tensor, like: Tensor) -> Tensor:
    """Return 0 for self pairs, else 1: (E, 1), with the dtype of `like`."""
    return (pairs[0] != pairs[1]).to(like.dtype)[:, None]


class SumOverNeighbours(torch.autograd.Function):
    """Compute `sum_over_neighbours` for all edges of a graph without a memory; the gradient is that of both ends.

    Do not let `forward` end in a cast that changes nothing: the compiler of torch 2.11 then loses the gradient.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, pairs: Tensor, num_nodes: int) -> Tensor:
        ctx.num_nodes = num_nodes
        return sum_at_ends(values, values * off_diagonal(pairs, values), num_nodes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        pairs = edge_pairs(ctx.num_nodes, grad.device)
        return grad[pairs[0]] + grad[pairs[1]] * off_diagonal(pairs, grad), None, None


def to_dense(edge_values: Tensor, num_nodes: int) -> Tensor:
    """Return the values of undirected edges, (E, ...), as a symmetric (N, N, ...) tensor."""
    return edge_values[edge_index(num_nodes, edge_values.device)]

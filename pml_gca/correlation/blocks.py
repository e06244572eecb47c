"""The parts of a propagation layer: the node block, the edge block, and the batch norm of the outputs.

Sections 3.2 and 3.3 of https://arxiv.org/abs/2411.13145
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.norms import excess_of
from ..utils.running_statistics import WideBuffers
from .attention import negative_attention
from .edge_list import EdgeList
from .edges import at_ends, sum_over_neighbours

ATTENTION = ("query", "key", "value", "out")  # linear layers of a block's attention; edges have no "out"


class ScaleBatchNorm(WideBuffers):
    """Batch normalisation with a learned scale, no shift, and a weight per row.

    A row counts as often as its weight says: an undirected edge stands for two ordered pairs. Statistics are computed
    in float32 or wider, also under autocast, and for rows of any size. A running variance is capped at the largest
    finite number. In training, a single row has no variance: it normalises to zero, and the running statistics stay.
    No rows at all pass through. Without gradients (`torch.no_grad()`) the running statistics stay as they are.
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

    def forward(
        self, x: Tensor, row_weights: Tensor | None = None, shared: Callable[..., tuple[Tensor, ...]] | None = None
    ) -> Tensor:
        """Normalise `x` (R, D) with optional `row_weights` (R,); return (R, D) in float32 or wider.

        If other processes have more rows, `shared` adds the sums over theirs. Rows must then be of usual size.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training and (len(x) > 0 or shared):
            add = shared or (lambda *sums: sums)
            # Products and sums, not matrix products: neither autocast nor TF32 touches these.
            weights = x.new_ones(len(x), 1) if row_weights is None else row_weights.to(x.dtype)[:, None]
            count, mean = add(weights.sum(), (x * weights).sum(dim=0))
            mean = mean / count
            centred = x - mean
            # Scale down channels whose variance would overflow; eps is negligible beside it.
            scale = torch.ones_like(mean[None]) if shared else excess_of(centred, dim=0)
            centred = centred / scale
            variance = add((centred.square() * weights).sum(dim=0))[0] / count
            if (len(x) > 1 or shared) and torch.is_grad_enabled():
                self.observe(count, mean, variance * scale[0].square())
        else:
            centred, variance = x - self.running_mean, self.running_var.to(x.dtype)
        return centred * (torch.rsqrt(variance + self.eps) * self.weight)

    @torch.no_grad()
    def observe(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics.

        Args:
            count: total weight of the rows, scalar.
            mean, variance: (D,), of the batch; the variance is the biased one.
        """
        unbiased = variance.detach() * (count / (count - 1))
        unbiased = unbiased.clamp_max(torch.finfo(unbiased.dtype).max)
        # A batch with a value that is not finite is refused, but a device may report it only after this.
        is_finite = torch.isfinite(mean).all()
        for running, new in ((self.running_mean, mean.detach()), (self.running_var, unbiased)):
            moved = torch.lerp(running, new.to(running.dtype), self.momentum)
            torch.where(is_finite, moved, running, out=running)
        self.num_batches_tracked.add_(is_finite)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the dtype of `x`."""
    return F.linear(x, module.weight.to(x.dtype), module.bias.to(x.dtype))


class NodeBlock(nn.Module):
    """Nodes attend to their negatives, take in messages of all their edges, and pass a feed-forward net.

    Post-norm throughout, norm(x) = LayerNorm(GELU(x)), with one shared norm. Sections 3.2 and 3.3 of the paper.

    Args:
        embedding_size: D.
        num_heads: H.
        any_length: whether nodes may be as long as embeddings are; nodes from another block are normalised.
    """

    def __init__(self, embedding_size: int, num_heads: int, any_length: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.any_length = any_length
        self.query = nn.Linear(embedding_size, embedding_size)
        self.key = nn.Linear(embedding_size, embedding_size)
        self.value = nn.Linear(embedding_size, embedding_size)
        self.out = nn.Linear(embedding_size, embedding_size)
        self.edge_to_node = nn.Linear(embedding_size, embedding_size)
        self.expand = nn.Linear(embedding_size, 4 * embedding_size)
        self.contract = nn.Linear(4 * embedding_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size)

    def forward(self, nodes: Tensor, edges: Tensor, listed: EdgeList, labels: Tensor) -> Tensor:
        """Return the next (N, D) nodes from (N, D) nodes, (E, D) edges, as they are listed, and (N,) labels."""
        nodes = self.attend(nodes, labels, num_memory=listed.num_memory)
        made = F.gelu(self.edge_to_node(edges))
        (messages,) = listed.leave(sum_over_neighbours(made, listed))
        return self.update(nodes, messages, listed.num_memory)

    def attend(
        self,
        nodes: Tensor,
        labels: Tensor,
        attention: Callable[..., Tensor] = negative_attention,
        num_memory: int = 0,
    ) -> Tensor:
        """Return a = norm(h + Linear(attention over negatives)), (N, D), for (N, D) nodes h and (N,) labels.

        The first nodes are as long as the embeddings: compute in float32 or wider, also under autocast.
        """
        with torch.autocast(nodes.device.type, enabled=False):
            x = nodes.to(torch.promote_types(nodes.dtype, torch.float32))
            scale = excess_of(x) if self.any_length else None
            q, k, v = (linear(module, x) for module in (self.query, self.key, self.value))
            heard = F.gelu(x + linear(self.out, attention(q, k, v, labels, self.num_heads, scale, num_memory)))
            if self.any_length:
                heard = heard / excess_of(heard)  # eps is negligible beside a variance this large
            weight, bias = (parameter.to(x.dtype) for parameter in (self.norm.weight, self.norm.bias))
            return F.layer_norm(heard, x.shape[1:], weight, bias, self.norm.eps).to(self.norm.weight.dtype)

    def update(self, nodes: Tensor, messages: Tensor, num_memory: int = 0) -> Tensor:
        """Return norm(b + FF(b)), (N, D), where b = norm(a + messages) of (N, D) nodes a and their edges' messages.

        With a memory, the messages of nodes of the batch count B/N each, see `edges`.
        """
        if num_memory:
            size = len(nodes) - num_memory
            messages = torch.cat([messages[:size] * (size / len(nodes)), messages[size:]])
        nodes = self.norm(F.gelu(nodes + messages.to(nodes.dtype)))
        return self.norm(F.gelu(nodes + self.contract(F.gelu(self.expand(nodes)))))


class EdgeBlock(nn.Module):
    """Every edge attends, with one head, to its two end nodes, then passes an MLP; post-norm throughout.

    t = norm(attended + e), e ← norm(MLP(t) + t). Section 3.3 of the paper. Keys and values are computed per node, not
    per edge. The softmax over two ends is a sigmoid of the difference of their scores. The query projection is folded
    into that difference. The MLP is therefore the only product with a D x D matrix per edge.
    """

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
        """Return weights and biases of the MLP; the second ones include the scale and shift of its LayerNorm."""
        contract, norm = self.contract, self.expand_norm
        shift = (contract.weight * norm.bias).sum(dim=1)
        return self.expand.weight, self.expand.bias, contract.weight * norm.weight, contract.bias + shift

    def fold(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what edges attend to, per node: u = Qᵀ K g (N, D), c = b_Q · K g (N,) and V g (N, D)."""
        g = F.gelu(self.node_to_edge(nodes))
        keys = self.key(g)
        return keys @ self.query.weight, keys @ self.query.bias, self.value(g)

    def mask(self, listed: EdgeList, like: Tensor) -> Tensor:
        """Draw what dropout multiplies the attention to either end with: (2, E), with dtype and device of `like`."""
        return listed.own(lambda count: self.dropout(like.new_ones(2, count)), like.device)

    def attend(self, nodes: Tensor, edges: Tensor, listed: EdgeList) -> Tensor:
        r"""Return the attention of each undirected edge to its end nodes: (E, D).

        With u and c of `fold`, the score difference of the two ends is
        $(e_{ij} \cdot (u_i - u_j) + c_i - c_j)/\sqrt{D}$. The softmax over two ends is its sigmoid.
        """
        folded, offset, values = listed.enter(*self.fold(nodes))
        folded_i, folded_j = at_ends(folded, listed)
        offset_i, offset_j = at_ends(offset, listed)
        value_i, value_j = at_ends(values, listed)
        difference = (edges * (folded_i - folded_j)).sum(dim=1) + (offset_i - offset_j)
        difference = difference / math.sqrt(edges.shape[1])
        weights = torch.stack([difference, -difference]).sigmoid()
        if self.dropout.training and self.dropout.p:
            weights = weights * self.mask(listed, weights)
        return weights[0, :, None] * value_i + weights[1, :, None] * value_j

    def forward(self, nodes: Tensor, edges: Tensor, listed: EdgeList) -> Tensor:
        """Return the next (E, D) edges from (N, D) nodes and (E, D) edges, as they are listed."""
        edges = self.norm(F.gelu(self.attend(nodes, edges, listed) + edges))
        hidden = self.expand_norm(F.gelu(self.expand(edges)))
        return self.norm(F.gelu(self.contract(hidden) + edges))


def initialize_attention(module: nn.Module) -> None:
    """Initialise the attention of all blocks in `module` as the published code does: Xavier weights, zero biases.

    That is query, key, value and output of the node attention, and query, key and value of the edge attention. All
    other linear layers keep PyTorch's initialisation, as in the published code.
    """
    for block in module.modules():
        if isinstance(block, (NodeBlock, EdgeBlock)):
            for name in ATTENTION:
                linear = getattr(block, name, None)
                if linear is not None:
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.zeros_(linear.bias)

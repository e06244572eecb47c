"""The attention of nodes to nodes of other classes. Section 3.2 of https://arxiv.org/abs/2411.13145"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    labels: Tensor,
    num_heads: int,
    scale: Tensor | None = None,
    num_memory: int = 0,
) -> Tensor:
    r"""Return the attention of every node to the nodes of other classes, with H heads and a sink of score 0.

    $$w_{ij} = \exp(s_{ij}) / (1 + \sum_{j: y_j \ne y_i} \exp(s_{ij})), \quad s_{ij} = q_i k_j / \sqrt{D/H}$$

    The 1 is one more score of 0, without a value: a node without negatives gets a zero message.

    Scores may be of any size. Here the largest score is subtracted first, and the scale is restored afterwards. Fused
    attention would lose large scores: its backward pass computes exp(s - log Σ exp(s)) from rounded numbers.

    Args:
        query, key, value: (N, D), in float32 or wider.
        labels: (N,) long.
        num_heads: H, a divisor of D.
        scale: (N, 1), at least 1, if scores may overflow. Dividing queries by it, and keys by its maximum, brings them
            to a usual size.
        num_memory: M, how many of the last nodes are a memory. They attend to the B others alone, so that there are
            B² + 2 B M scores.

    Returns:
        (N, D), the heads' messages side by side.
    """
    restored: Tensor | float = math.sqrt(num_heads / query.shape[1])
    if scale is not None and scale.shape[0] > 0:
        largest = scale.amax()
        query, key = query / scale, key / largest
        restored = (scale * (largest * restored)).clamp_max(torch.finfo(query.dtype).max)
    if not num_memory:
        return _attend(query, key, value, labels[:, None] == labels, num_heads, restored)
    size = len(query) - num_memory
    parts = []
    for rows, heard in ((slice(size), slice(None)), (slice(size, None), slice(size))):
        alike = labels[rows, None] == labels[heard]
        factor = restored[rows] if isinstance(restored, Tensor) else restored
        parts.append(_attend(query[rows], key[heard], value[heard], alike, num_heads, factor))
    return torch.cat(parts)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, alike: Tensor, num_heads: int, restored: Tensor | float
) -> Tensor:
    """Return the attention of (Q, D) queries to (N, D) keys and values, except where the (Q, N) mask is True."""
    q, k, v = (x.unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (query, key, value))
    scores = torch.bmm(q, k.mT).masked_fill(alike, -math.inf)
    scores = F.pad(scores, (0, 1))  # the sink: the last score, which all nodes see
    below = scores - scores.detach().amax(dim=2, keepdim=True)
    weights = (below * restored).softmax(dim=2)[..., :-1]
    return torch.bmm(weights, v).transpose(0, 1).flatten(1)

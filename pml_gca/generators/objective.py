"""The terms that train the generator of GCA-HNG; pure functions. Section 3.5 of https://arxiv.org/abs/2411.13145"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import at_ends, compute_dtype, edge_multiplicity, sum_over_neighbours

HALF_GRADIENT_SCALE = 1024.0  # lifts gradients that float16 would flush to zero


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of ``values``, and 0 with a graph where there are none."""
    return values.mean() if values.numel() else values.sum()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (R, num_classes) logits and (R,) labels, in float32 or wider; 0 without rows."""
    return mean_or_zero(F.cross_entropy(logits.to(compute_dtype(logits)), labels, reduction="none"))


def similarity_loss(anchors: Tensor, synthetic: Tensor) -> Tensor:
    """J_sim = mean(1 − cos(z_i, ẑ)) of (S, D) anchors and (S, D) synthetic negatives: small when they are hard."""
    return mean_or_zero(1 - F.cosine_similarity(anchors.to(synthetic.dtype), synthetic, dim=1))


def diversity_loss(coefficients: Tensor, pairs: Tensor, num_nodes: int) -> Tensor:
    r"""How alike the coefficients of each node are, over all ordered pairs.

    .. math:: J_{div} = 1 - \sqrt{\sum_{ijd} (\lambda_{ijd} - \bar{\lambda}_{id})^2 / N^2}, \quad
              \bar{\lambda}_{id} = \text{mean}_j \lambda_{ijd}

    Args:
        coefficients: (E, D), of undirected edges.
        pairs: (2, E) long.
        num_nodes: N.

    Returns:
        Scalar; 1 when nothing differs, and may be negative, as channels are summed.
    """
    values = coefficients.to(compute_dtype(coefficients))
    mean = sum_over_neighbours(values, pairs, num_nodes) / max(num_nodes, 1)
    # Both ends of an edge see it; a self pair has one end, met twice.
    first, second = at_ends(mean, pairs)
    spread = (values - first).square() + (values - second).square()
    total = (spread * (edge_multiplicity(pairs, spread.dtype) / 2)[:, None]).sum() / max(num_nodes, 1) ** 2
    # The clamp keeps the root's infinite slope at 0 out of the gradient.
    return 1 - torch.sqrt(total.clamp_min(torch.finfo(total.dtype).tiny))


def hand_gradient_on(loss: Tensor, leaf: Tensor, embeddings: Tensor, in_half: bool = False) -> Tensor:
    """Let a loss of a detached copy of the embeddings reach the embeddings themselves.

    Several terms share one graph that was propagated from ``leaf``; only this one may train the embeddings. Its
    gradient with respect to the leaf is taken now, and handed on by a term of value 0.

    Args:
        loss: scalar, a function of ``leaf`` and of parameters.
        leaf: (N, D), detached copy whose first B rows are those of ``embeddings``.
        embeddings: (B, D).
        in_half: the graph was computed in float16.

    Returns:
        Scalar of the same value, whose gradient reaches the parameters and ``embeddings``.
    """
    scale = HALF_GRADIENT_SCALE if in_half else 1.0
    with torch.autocast(leaf.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(loss * scale, leaf, retain_graph=True)
    gradient = gradient[: len(embeddings)].to(compute_dtype(embeddings)) / scale
    return loss + (gradient * (embeddings - embeddings.detach())).sum()

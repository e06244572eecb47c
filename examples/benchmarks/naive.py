"""GCA-HNG as its equations stand, the baseline for speed and memory.

This is the first version that one would write. Each ordered pair of samples is an edge with its own projections. The
graph is propagated twice per iteration, and autograd does the rest. The parameters are those of a
`GlobalCorrelationGenerator`, which makes the results comparable, but none of its code runs.

Axis legend: B samples, A of them with a positive, C classes in the batch, N training classes, D channels, H heads.
Edges are the B² rows (i, j) in order; `ends` (2, B²) are their two nodes. A batch needs two classes, one of them with
two samples.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pml_gca import GlobalCorrelationGenerator


def linear(block: nn.Module, name: str, x: Tensor) -> Tensor:
    """Apply the linear layer `name` of `block` to (..., D)."""
    return F.linear(x, block.get_parameter(f"{name}.weight"), block.get_parameter(f"{name}.bias"))


def layer_norm(block: nn.Module, name: str, x: Tensor) -> Tensor:
    """Apply the layer normalisation `name` of `block` to (..., D)."""
    return F.layer_norm(x, x.shape[-1:], block.get_parameter(f"{name}.weight"), block.get_parameter(f"{name}.bias"))


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise (R, D) by the statistics of the batch, with a scale and no shift."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return F.batch_norm(x, mean, variance, norm.get_parameter("weight"), training=True)


def negative_attention(block: nn.Module, nodes: Tensor, labels: Tensor) -> Tensor:
    """Return messages (B, D) to (B, D) nodes, from nodes of other classes and a sink of score 0, by H heads."""
    num_heads: Any = block.num_heads
    query, key, value = (
        linear(block, name, nodes).unflatten(1, (num_heads, -1)).transpose(0, 1) for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])  # (H, B, B)
    scores = scores.masked_fill(labels[:, None] == labels, float("-inf"))
    weights = torch.cat([scores, torch.zeros_like(scores[:, :, :1])], dim=2).softmax(dim=2)[:, :, :-1]
    return linear(block, "out", (weights.to(value.dtype) @ value).transpose(0, 1).flatten(1))


def update_nodes(block: nn.Module, nodes: Tensor, edges: Tensor, ends: Tensor, labels: Tensor) -> Tensor:
    """Return the new nodes (B, D), from nodes (B, D) and edges (B², D)."""
    nodes = layer_norm(block, "norm", F.gelu(nodes + negative_attention(block, nodes, labels)))
    messages = F.gelu(linear(block, "edge_to_node", edges))
    messages = torch.zeros_like(nodes).index_add(0, ends[0], messages.to(nodes.dtype))
    nodes = layer_norm(block, "norm", F.gelu(nodes + messages))
    hidden = F.gelu(linear(block, "expand", nodes))
    return layer_norm(block, "norm", F.gelu(nodes + linear(block, "contract", hidden)))


def update_edges(block: nn.Module, nodes: Tensor, edges: Tensor, ends: Tensor, dropout: float) -> Tensor:
    """Return the new edges (B², D), from nodes (B, D) and edges (B², D)."""
    nodes = F.gelu(linear(block, "node_to_edge", nodes))
    first, second = nodes[ends[0]], nodes[ends[1]]
    query = linear(block, "query", edges)
    scores = torch.stack([(query * linear(block, "key", end)).sum(dim=1) for end in (first, second)], dim=1)
    weights = F.dropout((scores / math.sqrt(edges.shape[1])).softmax(dim=1), dropout)
    attended = weights[:, :1] * linear(block, "value", first) + weights[:, 1:] * linear(block, "value", second)
    edges = layer_norm(block, "norm", F.gelu(attended + edges))
    hidden = layer_norm(block, "expand_norm", F.gelu(linear(block, "expand", edges)))
    return layer_norm(block, "norm", F.gelu(linear(block, "contract", hidden) + edges))


def propagate(
    generator: GlobalCorrelationGenerator, embeddings: Tensor, labels: Tensor, dropout: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Return node logits (B, N) and coefficients (B, B, D) of embeddings (B, D) and labels (B,), in training mode."""
    propagation, size = generator.propagation, len(embeddings)
    sample = torch.arange(size, device=embeddings.device)
    ends = torch.stack([sample.repeat_interleave(size), sample.repeat(size)])
    standardized = F.normalize(embeddings - embeddings.mean(dim=1, keepdim=True), dim=1)
    edges = standardized[ends[0]] * standardized[ends[1]]
    nodes = linear(propagation, "input", embeddings)
    for layer in propagation.layers:
        nodes = update_nodes(layer.get_submodule("node"), nodes, edges, ends, labels)
        edges = update_edges(layer.get_submodule("edge"), nodes, edges, ends, dropout)
    logits = linear(propagation, "node_classifier", batch_norm(propagation.node_norm, nodes))
    coefficients = linear(propagation, "edge_coefficients", batch_norm(propagation.edge_norm, edges)).sigmoid()
    return logits, coefficients.unflatten(0, (size, size))


class Negatives(NamedTuple):
    """One synthetic negative for each of A anchors and C − 1 classes."""

    anchors: Tensor  # (A,) long
    positives: Tensor  # (A,) long, the next sample of the anchor's class
    labels: Tensor  # (A, C − 1) long, ascending
    embeddings: Tensor  # (A, C − 1, D)


def synthesize(embeddings: Tensor, labels: Tensor, coefficients: Tensor, draws: Tensor, strength: float) -> Negatives:
    """Return one synthetic negative for each anchor and each other class.

    Args:
        embeddings: (B, D).
        labels: (B,) long.
        coefficients: λ, (B, B, D).
        draws: u of each anchor and sample, (B, B).
        strength: e^{−α/L}.
    """
    classes = labels.unique()
    members = [(labels == label).nonzero()[:, 0] for label in classes]
    positives = torch.empty_like(labels)
    for samples in members:
        positives[samples] = samples.roll(-1)
    has_positive = positives != torch.arange(len(labels), device=labels.device)

    step = embeddings - embeddings[:, None]  # z_j − z_i, (B, B, D)
    nearest = torch.linalg.vector_norm(embeddings - embeddings[positives], dim=1)[:, None]
    farthest = torch.linalg.vector_norm(step, dim=2)
    pullable = nearest < farthest
    farthest = torch.where(pullable, farthest, 1.0)  # no division by the zero distance to oneself
    nearest, farthest = nearest[:, :, None], farthest[:, :, None]
    ratio = (nearest + (farthest - nearest) * coefficients * strength) / farthest
    pulled = torch.where(pullable[:, :, None], embeddings[:, None] + ratio * step, embeddings)
    candidates = pulled.unbind(dim=1)  # candidates[j]: sample j, pulled toward each anchor

    merged = []
    for samples in members:
        first, *others = samples.tolist()
        negative = candidates[first]
        for m in others:
            u = draws[:, m, None]
            negative = (1 - u) * candidates[m] + u * negative
        merged.append(negative)
    wanted = (labels[:, None] != classes) & has_positive[:, None]  # (B, C)
    anchors = has_positive.nonzero()[:, 0]
    shape = (len(anchors), len(classes) - 1)
    return Negatives(
        anchors,
        positives[anchors],
        classes.expand_as(wanted)[wanted].unflatten(0, shape),
        torch.stack(merged, dim=1)[wanted].unflatten(0, shape),
    )


def n_pairs(embeddings: Tensor, negatives: Negatives) -> Tensor:
    """Return J_syn: the cross-entropy of z_i·z_p(i) against all z_i·ẑ_ic, averaged over anchors."""
    anchors = embeddings[negatives.anchors]
    positive = (anchors * embeddings[negatives.positives]).sum(dim=1, keepdim=True)
    negative = (anchors[:, None] * negatives.embeddings).sum(dim=2)
    return F.cross_entropy(torch.cat([positive, negative], dim=1), torch.zeros_like(negatives.anchors))


def embedder_losses(
    generator: GlobalCorrelationGenerator,
    embeddings: Tensor,
    labels: Tensor,
    draws: Tensor,
    strength: float = 1.0,
    dropout: float = 0.1,
) -> dict[str, Tensor]:
    """Return J_syn and J_gce of embeddings (B, D), labels (B,) and draws (B, B)."""
    logits, coefficients = propagate(generator, embeddings, labels, dropout)
    negatives = synthesize(embeddings, labels, coefficients.detach(), draws, strength)
    return {"synthetic": n_pairs(embeddings, negatives), "node": F.cross_entropy(logits, labels)}


def generator_losses(
    generator: GlobalCorrelationGenerator,
    embeddings: Tensor,
    labels: Tensor,
    draws: Tensor,
    strength: float = 1.0,
    dropout: float = 0.1,
) -> dict[str, Tensor]:
    """Return J_soft, J_sim, J_div and J_gen of detached embeddings (B, D), labels (B,) and draws (B, B)."""
    _, coefficients = propagate(generator, embeddings, labels, dropout)
    negatives = synthesize(embeddings, labels, coefficients, draws, strength)
    classifier = generator.objective.classifier
    scores = F.linear(negatives.embeddings.flatten(0, 1), classifier.weight.detach(), classifier.bias.detach())
    soft = F.cross_entropy(scores, negatives.labels.flatten())
    similar = (1 - F.cosine_similarity(embeddings[negatives.anchors, None], negatives.embeddings, dim=2)).mean()
    deviation = coefficients - coefficients.mean(dim=1, keepdim=True)
    diverse = 1 - torch.sqrt(deviation.square().sum() / len(embeddings) ** 2)
    total = generator.objective.classification_weight * soft + generator.objective.similarity_weight * similar
    total = 0.5 * (total + 0.01 * generator.objective.diversity_weight * diverse)
    return {"soft": soft, "similarity": similar, "diversity": diverse, "generation": total}


def iteration(
    generator: GlobalCorrelationGenerator,
    embeddings: Tensor,
    labels: Tensor,
    metric_loss: Callable[[Tensor, Tensor], Tensor],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    levels: tuple[float, float] = (math.inf, math.inf),
    beta: float = 20.0,
    dropout: float = 0.1,
    draws: Tensor | None = None,
) -> dict[str, Tensor]:
    """Do one iteration of the published schedule. Add the embedder's gradient to `embeddings.grad`.

    Args:
        generator: whose parameters are updated.
        embeddings: (B, D), a leaf that requires gradient.
        labels: (B,) long.
        metric_loss: computes J_m from embeddings and labels.
        optimizers: one for the propagation, one for the auxiliary classifier.
        levels: L and G.
        beta: β.
        dropout: of the edge attention.
        draws: (2, B, B) in [0, 1], u of each anchor and sample in the first and the second pass; random by default.

    Returns:
        All loss terms, detached.
    """
    if draws is None:
        draws = torch.rand(2, len(labels), len(labels), device=labels.device)
    strength, weight = math.exp(-generator.alpha / levels[0]), -math.expm1(-beta / levels[1])
    real = embeddings.detach()

    losses = {"metric": metric_loss(embeddings, labels)}
    losses |= embedder_losses(generator, embeddings, labels, draws[0], strength, dropout)
    optimizers[0].zero_grad()
    (losses["metric"] + weight * losses["synthetic"] + losses["node"]).backward()
    optimizers[0].step()

    losses["auxiliary"] = 10 * F.cross_entropy(generator.objective.classifier(real), labels)
    optimizers[1].zero_grad()
    losses["auxiliary"].backward()
    optimizers[1].step()

    losses |= generator_losses(generator, real, labels, draws[1], strength, dropout)
    optimizers[0].zero_grad()
    losses["generation"].backward()
    optimizers[0].step()
    return {name: loss.detach() for name, loss in losses.items()}

"""GCA-HNG written out from its equations: directed edges, Python loops, one vector at a time. Slow on purpose.

Everything works on tensors, so that autograd gives the oracle's gradients too. Parameters are read from a
`GlobalCorrelationGenerator` by name; none of its code runs.

The last `num_memory` nodes are a memory: they have no edges among each other. Edges are the keys of a dict, (i, j).
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(module, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias


def layer_norm(module, x: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    return module.weight * centred / torch.sqrt((centred**2).sum() / len(x) + module.eps) + module.bias


def post_norm(module, x: Tensor) -> Tensor:
    return layer_norm(module, F.gelu(x))


def batch_norm(module, rows: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows normalised by their own mean and variance, and what the running statistics become."""
    mean = sum(rows) / len(rows)
    variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    normalised = [module.weight * (row - mean) / torch.sqrt(variance + module.eps) for row in rows]
    unbiased = variance * len(rows) / max(len(rows) - 1, 1)
    return normalised, 0.1 * mean.detach(), 0.9 + 0.1 * unbiased.detach()


def initial_edge(z_i: Tensor, z_j: Tensor) -> Tensor:
    x_i, x_j = ((z - z.mean()) / torch.sqrt(((z - z.mean()) ** 2).sum()) for z in (z_i, z_j))
    return x_i * x_j


def node_update(block, h: list[Tensor], e: dict, labels: list[int], num_memory: int = 0) -> list[Tensor]:
    n, size = len(h), len(h[0]) // block.num_heads
    updated = []
    for i in range(n):
        neighbours = [j for j in range(n) if (i, j) in e]
        heads = []
        for head in range(block.num_heads):
            part = slice(head * size, (head + 1) * size)
            negatives = [j for j in neighbours if labels[j] != labels[i]]
            query = linear(block.query, h[i])[part]
            scores = [torch.exp(query @ linear(block.key, h[j])[part] / math.sqrt(size)) for j in negatives]
            message = torch.zeros_like(query)
            for j, score in zip(negatives, scores, strict=True):
                message = message + score / (1 + sum(scores)) * linear(block.value, h[j])[part]
            heads.append(message)
        a = post_norm(block.norm, h[i] + linear(block.out, torch.cat(heads)))
        messages = sum(F.gelu(linear(block.edge_to_node, e[i, j])) for j in neighbours) / len(neighbours)
        b = post_norm(block.norm, a + (n - num_memory) * messages)
        updated.append(post_norm(block.norm, b + linear(block.contract, F.gelu(linear(block.expand, b)))))
    return updated


def edge_update(block, h: list[Tensor], e: dict) -> dict:
    g = [F.gelu(linear(block.node_to_edge, row)) for row in h]
    updated = {}
    for (i, j), edge in e.items():
        query = linear(block.query, edge)
        scores = torch.stack([query @ linear(block.key, g[i]), query @ linear(block.key, g[j])])
        weights = torch.softmax(scores / math.sqrt(len(edge)), dim=0)
        attended = weights[0] * linear(block.value, g[i]) + weights[1] * linear(block.value, g[j])
        t = post_norm(block.norm, attended + edge)
        hidden = layer_norm(block.expand_norm, F.gelu(linear(block.expand, t)))
        updated[i, j] = post_norm(block.norm, linear(block.contract, hidden) + t)
    return updated


def propagate(propagation, z: Tensor, labels: list[int], num_memory: int = 0) -> SimpleNamespace:
    """Logits (N, classes), coefficients (N, N, D) and running statistics after one training pass; no dropout.

    Of a propagation without coefficients, the logits alone. A memory has no logits; coefficients are NaN where there is
    no edge.
    """
    n = len(z)
    batch = range(n - num_memory)
    h = [linear(propagation.input, row) for row in z]
    e = {(i, j): initial_edge(z[i], z[j]) for i in range(n) for j in range(n) if i in batch or j in batch}
    for layer in propagation.layers:
        h = node_update(layer.node, h, e, labels, num_memory)
        if layer.edge is not None:
            e = edge_update(layer.edge, h, e)
    nodes, node_mean, node_variance = batch_norm(propagation.node_norm, h[: len(batch)])
    logits = torch.stack([linear(propagation.node_classifier, row) for row in nodes])
    if not propagation.with_coefficients:
        return SimpleNamespace(logits=logits)
    edges, edge_mean, edge_variance = batch_norm(propagation.edge_norm, list(e.values()))
    found = {
        pair: torch.sigmoid(linear(propagation.edge_coefficients, row)) for pair, row in zip(e, edges, strict=True)
    }
    none = torch.full_like(z[0], math.nan)
    coefficients = [found.get((i, j), none) for i in range(n) for j in range(n)]
    return SimpleNamespace(
        logits=logits,
        coefficients=torch.stack(coefficients).reshape(n, n, -1),
        node_statistics=(node_mean, node_variance),
        edge_statistics=(edge_mean, edge_variance),
    )


def next_positive(labels: list[int], i: int) -> int | None:
    n = len(labels)
    return next(((i + k) % n for k in range(1, n) if labels[(i + k) % n] == labels[i]), None)


def distance(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(((x - y) ** 2).sum())


def candidate(z: Tensor, labels: list[int], i: int, j: int, coefficient: Tensor, strength: float) -> Tensor:
    near, far = distance(z[i], z[next_positive(labels, i)]), distance(z[i], z[j])
    if near < far:
        return z[i] + (near + (far - near) * coefficient * strength) / far * (z[j] - z[i])
    return z[j]


def synthesize(z: Tensor, labels: list[int], coefficients: Tensor, draws: Tensor, strength: float, num_anchors: int):
    """Negatives [(anchor, label, ẑ)] in order of anchor and then label."""
    negatives = []
    for i in range(num_anchors):
        if next_positive(labels, i) is None:
            continue
        for label in sorted(set(labels) - {labels[i]}):
            merged = None
            for j in (j for j in range(len(labels)) if labels[j] == label):
                new = candidate(z, labels, i, j, coefficients[i, j], strength)
                merged = new if merged is None else (1 - draws[i, j]) * new + draws[i, j] * merged
            negatives.append((i, label, merged))
    return negatives


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    return torch.log(torch.exp(logits).sum()) - logits[target]


def mean(values: list[Tensor]) -> Tensor | float:
    return sum(values) / len(values) if values else 0.0


def diversity(coefficients: Tensor) -> Tensor:
    """J_div over the pairs that share an edge; others are NaN."""
    spread, count = 0.0, 0
    for row in coefficients:
        present = row[~row[:, 0].isnan()]
        spread = spread + ((present - present.mean(dim=0)) ** 2).sum()
        count += len(present)
    return 1 - torch.sqrt(spread / count)


def objectives(
    generator, z: Tensor, labels: list[int], draws: Tensor, level: float, num_memory: int = 0
) -> SimpleNamespace:
    """Each term of the objectives as a function of z and all parameters; routing is up to the caller."""
    graph, size = propagate(generator.propagation, z, labels, num_memory), len(labels) - num_memory
    strength = math.exp(-generator.alpha / level)
    negatives = synthesize(z.detach(), labels, graph.coefficients, draws, strength, size)
    weight, bias = (p.detach() for p in generator.objective.classifier.parameters())
    auxiliary = generator.objective.classifier
    soft = mean([cross_entropy(weight @ synthetic + bias, label) for _, label, synthetic in negatives])
    similar = mean([1 - F.cosine_similarity(z[i].detach(), synthetic, dim=0) for i, _, synthetic in negatives])
    diverse = diversity(graph.coefficients)
    return SimpleNamespace(
        graph=graph,
        negatives=synthesize(z, labels, graph.coefficients.detach(), draws, strength, size),
        node_classification=mean([cross_entropy(row, y) for row, y in zip(graph.logits, labels[:size], strict=True)]),
        generator=0.5
        * (
            generator.objective.classification_weight * soft
            + generator.objective.similarity_weight * similar
            + 0.01 * generator.objective.diversity_weight * diverse
        ),
        auxiliary=10
        * mean([cross_entropy(linear(auxiliary, row.detach()), y) for row, y in zip(z[:size], labels, strict=False)]),
    )

"""J_syn of each family of losses, written from its equation with Python loops. Slow on purpose.

Each function takes a `SyntheticBatch` and returns a scalar. An anchor is compared with its real positives (among all
nodes, not itself) and its own synthetic negatives. Nothing here uses masks or PML's code.
"""

import math

import torch
import torch.nn.functional as F


def unit(x):
    return x / x.norm()


def euclidean(x, y):
    return (unit(x) - unit(y)).norm()


def cosine(x, y):
    return (unit(x) * unit(y)).sum()


def noise_to_signal(x, y):
    return (unit(x) - unit(y)).var() / unit(x).var()


def anchors(batch):
    """Yield (i, z_i, real positives, own synthetic negatives) of each anchor; positives as (node, z)."""
    for i in range(len(batch.embeddings)):
        same = [j for j in range(len(batch.nodes)) if j != i and batch.node_labels[j] == batch.labels[i]]
        own = [z for z, a in zip(batch.negatives.embeddings, batch.negatives.anchors, strict=True) if a == i]
        yield i, batch.embeddings[i], [(j, batch.nodes[j]) for j in same], own


def total(values):
    return sum(values, start=torch.zeros((), dtype=torch.float64))


def mean(values):
    return total(values) / len(values)


def mean_of_positive(values):
    """PML's AvgNonZeroReducer."""
    values = [value for value in values if value > 0]
    return mean(values) if values else total(values)


def log_sum_exp(values):
    """Return 0 for no values, as PML does."""
    return torch.logsumexp(torch.stack(values), dim=0) if values else torch.zeros((), dtype=torch.float64)


def contrastive(batch, distance=euclidean):
    near = [F.relu(distance(z, p)) for _, z, positives, _ in anchors(batch) for _, p in positives]
    far = [F.relu(1 - distance(z, n)) for _, z, _, own in anchors(batch) for n in own]
    return mean_of_positive(near) + mean_of_positive(far)


def snr_contrastive(batch):
    return contrastive(batch, noise_to_signal)


def triplet(batch, margin=0.05, swap=False, smooth=False):
    values = []
    for _, z, positives, own in anchors(batch):
        for _, p in positives:
            for n in own:
                far = torch.minimum(euclidean(z, n), euclidean(p, n)) if swap else euclidean(z, n)
                violation = euclidean(z, p) - far + margin
                values.append(torch.log(1 + torch.exp(violation)) if smooth else F.relu(violation))
    return mean_of_positive(values)


def margin(batch, beta=1.2, alpha=0.2):
    values, active = [], 0
    for _, z, positives, own in anchors(batch):
        for _, p in positives:
            for n in own:
                near = F.relu(euclidean(z, p) - beta + alpha)
                far = F.relu(beta - euclidean(z, n) + alpha)
                active += int(near > 0) + int(far > 0)
                values.append(near + far)
    return total(values) / active


def multi_similarity(batch, alpha=2, beta=50, base=0.5):
    values = []
    for _, z, positives, own in anchors(batch):
        near = torch.log(1 + total([torch.exp(-alpha * (cosine(z, p) - base)) for _, p in positives])) / alpha
        far = torch.log(1 + total([torch.exp(beta * (cosine(z, n) - base)) for n in own])) / beta
        values.append(near + far)
    return mean(values)


def circle(batch, m=0.4, gamma=80):
    values = []
    for _, z, positives, own in anchors(batch):
        if not positives or not own:
            continue
        near = [cosine(z, p) for _, p in positives]
        far = [cosine(z, n) for n in own]
        near = [-gamma * F.relu(1 + m - s.detach()) * (s - (1 - m)) for s in near]
        far = [gamma * F.relu(s.detach() + m) * (s - m) for s in far]
        values.append(F.softplus(log_sum_exp(near) + log_sum_exp(far)))
    return mean(values)


def nt_xent(batch, temperature=0.07):
    values = []
    for _, z, positives, own in anchors(batch):
        for _, p in positives:
            scores = torch.stack([cosine(z, x) / temperature for x in [p, *own]])
            values.append(F.cross_entropy(scores, torch.tensor(0)))
    return mean(values)


def sup_con(batch, temperature=0.1):
    values = []
    for _, z, positives, own in anchors(batch):
        if positives:
            scores = [cosine(z, x) / temperature for x in [p for _, p in positives] + own]
            everything = log_sum_exp(scores)
            values.append(mean([everything - s for s in scores[: len(positives)]]))
    return mean_of_positive(values)


def tuplet(batch, degrees=5.73, scale=64):
    values, angle = [], math.radians(degrees)
    for _, z, positives, own in anchors(batch):
        for _, p in positives:
            near = torch.cos(torch.acos(cosine(z, p)) - angle)
            values.append(torch.log(1 + total([torch.exp(scale * (cosine(z, n) - near)) for n in own])))
    return mean(values)


def lifted(batch):
    """Compare a pair with the negatives of both its ends, each at the distance from its own anchor."""
    far = {i: [1 - euclidean(z, n) for n in own] for i, z, _, own in anchors(batch)}
    values = []
    for i, z, positives, _ in anchors(batch):
        for j, p in positives:
            pair = log_sum_exp(far[i] + far.get(j, [])) + euclidean(z, p)
            values.append(F.relu(pair) ** 2 / 2)
    return mean(values)


def generalized_lifted(batch):
    values = []
    for _, z, positives, own in anchors(batch):
        near = log_sum_exp([euclidean(z, p) for _, p in positives])
        values.append(F.relu(near + log_sum_exp([1 - euclidean(z, n) for n in own])))
    return mean(values)


def similarities(batch):
    near = [cosine(z, p) for _, z, positives, _ in anchors(batch) for _, p in positives]
    far = [cosine(z, n) for _, z, _, own in anchors(batch) for n in own]
    return near, far


def intra_pair_variance(batch, eps=0.01):
    near, far = similarities(batch)
    mean_near, mean_far = mean(near), mean(far)
    low = mean([F.relu((1 - eps) * mean_near - s) ** 2 for s in near])
    return low + mean([F.relu(s - (1 + eps) * mean_far) ** 2 for s in far])


def threshold_consistent_margin(batch, margin_plus=0.9, margin_minus=0.5):
    near, far = similarities(batch)
    near = [margin_plus - s for s in near if s <= margin_plus]
    far = [s - margin_minus for s in far if s >= margin_minus]
    return (mean(near) if near else 0) + (mean(far) if far else 0)


def histogram(batch, bins=20):
    """Probability that a random negative pair is nearer than a random positive one, by triangular histograms."""
    width, grid = 2 / bins, [-1 + 2 * k / bins for k in range(bins + 1)]
    near = {}
    for i, z, positives, own in anchors(batch):
        if own:
            near |= {frozenset((i, j)): cosine(z, p) for j, p in positives}
    _, far = similarities(batch)

    def density(values):
        return [mean([F.relu(1 - (s - node).abs() / width) for s in values]) for node in grid]

    positive, negative = density(list(near.values())), density(far)
    return total([negative[r] * total(positive[: r + 1]) for r in range(len(grid))])


def dot(x, y):
    return (x * y).sum()


def n_pairs(batch, similarity=cosine):
    """Cross-entropy of the next sample of the class, in node order, against the anchor's own negatives.

    PML's dot product normalises by default.
    """
    values, count = [], len(batch.nodes)
    for i, z, positives, own in anchors(batch):
        if positives:
            _, p = min(positives, key=lambda positive: (positive[0] - i) % count)
            scores = torch.stack([similarity(z, x) for x in [p, *own]])
            values.append(F.cross_entropy(scores, torch.tensor(0)))
    return mean(values)


def nca(batch):
    values = []
    for _, z, positives, own in anchors(batch):
        if positives:
            near = total([torch.exp(-(euclidean(z, p) ** 2)) for _, p in positives])
            far = total([torch.exp(-(euclidean(z, n) ** 2)) for n in own])
            values.append(-torch.log(near / (near + far)))
    return mean(values)


def angular(batch, degrees=40):
    """PML's form: anchors and positives of unit length, negatives unnormalised."""
    tangent, values = math.tan(math.radians(degrees)) ** 2, []
    for _, z, positives, own in anchors(batch):
        for _, p in positives:
            z_, p_ = unit(z), unit(p)
            terms = [4 * tangent * (z_ + p_) @ n - 2 * (1 + tangent) * z_ @ p_ for n in own]
            values.append(torch.log(1 + total([torch.exp(term) for term in terms])))
    return mean(values)

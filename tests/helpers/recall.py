"""Data sets, a slow oracle and a counting search for tests of Recall@K."""

import torch
from pytorch_metric_learning.utils.inference import FaissKNN

CPU = torch.device("cpu")
RECALLS = (1, 2, 4, 8)
NAMES = tuple(f"recall_at_{k}" for k in RECALLS)
PML_NAMES = (
    "precision_at_1",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    "r_precision",
)


class CountingKNN:
    """An exact search that notes how many neighbours it was asked for."""

    def __init__(self):
        self.asked, self.knn = [], FaissKNN()

    def __call__(self, query, k, reference, ref_includes_query=False):
        self.asked.append(k)
        return self.knn(query, k, reference, ref_includes_query)


def oracle(query, query_labels, ref, ref_labels, top, self_match, same=lambda a, b: a == b):
    """{label: [hit of each of its queries]}, by loops over scalars; queries without a match left out."""
    hits = {}
    for i in range(len(query)):
        others = [j for j in range(len(ref)) if not (self_match and i == j)]
        if not any(same(query_labels[i].item(), ref_labels[j].item()) for j in others):
            continue
        x = query[i].tolist()
        distance = {j: sum((a - b) ** 2 for a, b in zip(x, ref[j].tolist(), strict=True)) for j in others}
        nearest = sorted(others, key=distance.__getitem__)[:top]
        hit = any(same(query_labels[i].item(), ref_labels[j].item()) for j in nearest)
        hits.setdefault(query_labels[i].item(), []).append(float(hit))
    return hits


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def make(seed, queries, references, classes, dim=3):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, dim, generator=g),
        torch.randint(classes, (queries,), generator=g),
        torch.randn(references, dim, generator=g),
        torch.randint(classes, (references,), generator=g),
    )

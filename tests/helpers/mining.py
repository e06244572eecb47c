"""Batches, a generator and a slow oracle for tests of the miner."""

import copy

import torch
from hypothesis import strategies as st

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner

CLASSES, D = 12, 8
OUTPUTS = ("triplets", "pairs")
COMPOSITIONS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=14)


def make_generator(**kwargs):
    """A generator whose batch normalisation has seen data, left in training mode."""
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2, **kwargs)
    for _ in range(3):
        generator(torch.randn(10, D), torch.randint(CLASSES, (10,)))
    return generator


GENERATOR = make_generator()


def miner_of(count, output="triplets"):
    return GlobalCorrelationMiner(GENERATOR, negatives_per_anchor=count, output=output)


def batch(labels, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.randn(len(labels), D, dtype=dtype), torch.tensor(labels, dtype=torch.long)


def slow_negatives(generator, embeddings, labels, count, ref_emb=None, ref_labels=None):
    """{(anchor, negative)}: per anchor, the `count` negatives of least mean coefficient, from the dense ones."""
    offset, nodes, node_labels = 0, embeddings, labels
    if ref_emb is not None:
        offset, nodes, node_labels = len(labels), torch.cat([embeddings, ref_emb]), torch.cat([labels, ref_labels])
    generator = copy.deepcopy(generator).eval()
    with torch.no_grad():
        coefficients = generator.correlate(nodes, node_labels).dense()
    found = set()
    for i in range(len(labels)):
        others = [j for j in range(offset, len(nodes)) if node_labels[j] != labels[i]]
        others.sort(key=lambda j: float(coefficients[i, j].mean()))
        found |= {(i, j - offset) for j in others[:count]}
    return found


def positives_of(labels, ref_labels, itself):
    rows = range(len(labels))
    return {(i, j) for i in rows for j in range(len(ref_labels)) if labels[i] == ref_labels[j] and not itself(i, j)}


def couples(first, second):
    return list(zip(first.tolist(), second.tolist(), strict=True))


def assert_mined(mined, output, positives, negatives):
    assert isinstance(mined, tuple)
    assert len(mined) == (3 if output == "triplets" else 4)
    assert all(t.dtype == torch.long and t.ndim == 1 and not t.requires_grad for t in mined)
    if output == "pairs":
        for got, expected in ((couples(*mined[:2]), positives), (couples(*mined[2:]), negatives)):
            assert len(got) == len(expected)  # none twice
            assert set(got) == expected
    else:
        got = list(zip(*(t.tolist() for t in mined), strict=True))
        expected = {(a, p, n) for a, p in positives for b, n in negatives if a == b}
        assert len(got) == len(expected)
        assert set(got) == expected

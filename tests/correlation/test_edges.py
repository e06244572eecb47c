import pytest
import torch
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st

from pml_gca.correlation.edges import (
    correlation_edges,
    edge_index,
    edge_multiplicity,
    edge_pairs,
    join_references,
    occurrence,
    standardize,
    sum_over_neighbours,
    to_dense,
)


@given(st.integers(0, 12))
def test_pairs_index_and_multiplicity_agree(n):
    pairs = edge_pairs(n)
    assert pairs.shape == (2, n * (n + 1) // 2)
    assert sorted(sorted(pair) for pair in pairs.T.tolist()) == [[i, j] for i in range(n) for j in range(i, n)]
    assert pairs.T.tolist() == [[e % n, (e % n + e // n) % n] for e in range(pairs.shape[1])]
    index = edge_index(n)
    assert torch.equal(index, index.T)
    assert torch.equal(index[pairs[0], pairs[1]], torch.arange(pairs.shape[1]))
    assert edge_multiplicity(pairs).sum() == n * n


@given(st.integers(1, 8), st.integers(2, 20), st.integers(0, 99))
def test_edges_are_channel_wise_correlations(n, channels, seed):
    z = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = to_dense(correlation_edges(z, edge_pairs(n)), n)
    for i in range(n):
        for j in range(n):
            torch.testing.assert_close(edges[i, j], oracle.initial_edge(z[i], z[j]))
    if n > 1 and channels > 2:
        torch.testing.assert_close(edges.sum(dim=2), torch.corrcoef(z))


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_sum_over_neighbours(n, channels, seed):
    pairs = edge_pairs(n)
    values = torch.randn(pairs.shape[1], channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(sum_over_neighbours(values, pairs, n), to_dense(values, n).sum(dim=1))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30, 1e-30, -3.7])
def test_constant_embeddings_correlate_with_nothing(constant):
    z = torch.full((2, 7), constant)
    z[1] = torch.arange(7.0)
    z.requires_grad_()
    standardized = standardize(z)
    assert not standardized[0].any()
    standardized.pow(2).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert not z.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_standardized_in_float32(dtype):
    z = torch.randn(4, 64).to(dtype)
    assert standardize(z).dtype == torch.float32
    torch.testing.assert_close(standardize(z), standardize(z.float()))


@given(st.lists(st.integers(-3, 3), max_size=12))
def test_occurrence_counts_what_came_before(values):
    expected = [values[:i].count(value) for i, value in enumerate(values)]
    assert occurrence(torch.tensor(values, dtype=torch.long)).tolist() == expected


def slow_join(batch, references):
    """The node of each reference: the next sample equal to it that no reference before it is, else a new one."""
    unused, node_of, nodes = list(range(len(batch))), [], list(batch)
    for reference in references:
        twin = next((i for i in unused if batch[i] == reference), None)
        if twin is None:
            node_of.append(len(nodes))
            nodes.append(reference)
        else:
            node_of.append(twin)
            unused.remove(twin)
    return nodes, node_of


SAMPLES = st.tuples(st.integers(0, 3), st.integers(0, 2))  # an embedding of four, a label of three


@given(st.lists(SAMPLES, max_size=9), st.lists(SAMPLES, max_size=12), st.sampled_from([1, 3, 256]))
def test_references_and_samples_are_matched_one_to_one_in_order(batch, references, part):
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def tensors(samples):
        which = torch.tensor([s[0] for s in samples], dtype=torch.long)
        return points[which], torch.tensor([s[1] for s in samples], dtype=torch.long)

    embeddings, labels = tensors(batch)
    # More references than are compared at a time, none of them equal to a sample.
    filler = torch.arange(300.0)[:: 300 // part][:part].unsqueeze(1).expand(-1, 5)
    ref_emb, ref_labels = (
        torch.cat(pair) for pair in zip(tensors(references), (filler, filler[:, 0].long()), strict=True)
    )
    nodes, node_labels, node_of = join_references(embeddings.requires_grad_(), labels, ref_emb, ref_labels.short())
    expected, expected_of = slow_join(batch, references)
    count = len(expected)
    assert node_of.tolist() == [*expected_of, *range(count, count + len(filler))]
    assert torch.equal(nodes[:count], tensors(expected)[0])
    assert torch.equal(node_labels[:count], tensors(expected)[1])
    assert torch.equal(nodes[node_of], ref_emb)
    assert torch.equal(node_labels[node_of], ref_labels)
    assert torch.equal(nodes[: len(batch)], embeddings)


def test_what_is_no_number_is_in_nobodys_way():
    """Values of a GPU are checked when it has been given its work."""
    z, labels = torch.full((3, 4), float("nan")), torch.zeros(3, dtype=torch.long)
    assert join_references(z, labels, z.clone(), labels)[2].max() < 6

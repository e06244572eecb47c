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

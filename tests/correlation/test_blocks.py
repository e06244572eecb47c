"""Edges, blocks and the objective by themselves."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import oracle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.blocks import initialize_attention
from pml_gca.correlation.edge_list import EdgeList
from pml_gca.correlation.edges import (
    at_ends,
    correlation_edges,
    edge_index,
    edge_multiplicity,
    edge_pairs,
    standardize,
    sum_over_neighbours,
    to_dense,
)
from pml_gca.correlation.objective import classification_loss, frozen_classification_loss
from pml_gca.paper.published_names import published_names

SIZE = 512
OF_ATTENTION = re.compile(r"layers\.\d\.(node\.(query|key|value|out)|edge\.(query|key|value))")


def linear_layers(generator):
    return {name: layer for name, layer in generator.named_modules() if isinstance(layer, nn.Linear)}


def test_attention_starts_as_published():
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(20, SIZE, num_layers=2)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    initialize_attention(generator)
    layers = linear_layers(generator)
    attention = [name for name in layers if OF_ATTENTION.search(name)]
    assert len(attention) == 2 * (4 + 3)
    for name in attention:
        weight, bias = layers[name].weight, layers[name].bias
        assert weight.std().item() == pytest.approx(0.0442, abs=2e-4)  # sqrt(2 / (512 + 512))
        assert weight.mean().item() == pytest.approx(0, abs=4e-4)
        bound = (6 / (SIZE + SIZE)) ** 0.5
        assert 0.999 * bound < weight.abs().max().item() <= bound
        assert not bias.any()
        assert weight.requires_grad
        assert bias.requires_grad
    drawn = {f"{name}.{kind}" for name in attention for kind in ("weight", "bias")}
    assert {name for name, value in generator.state_dict().items() if not torch.equal(value, before[name])} == drawn
    # PyTorch's own, as which all of them start without
    assert before[f"{attention[0]}.weight"].std().item() == pytest.approx(0.0255, abs=2e-4)
    assert before[f"{attention[0]}.bias"].any()


def test_these_are_the_layers_that_the_published_code_starts_so():
    """The reference's weights are those of its start, and some noise."""
    with np.load(Path(__file__).parents[1] / "data" / "small_2layer.npz") as file:
        theirs = {name.removeprefix("state."): file[name] for name in file.files if name.startswith("state.")}
    generator = GlobalCorrelationGenerator(12, 16, num_layers=2)
    names = published_names(2)
    spreads = {
        name: theirs[names[f"{name}.weight"]].std() * layer.in_features**0.5
        for name, layer in linear_layers(generator).items()
    }
    wide = {name for name, spread in spreads.items() if spread > 0.85}  # 1 of Xavier's, 0.58 of PyTorch's
    assert wide == {name for name in spreads if OF_ATTENTION.search(name)}
    for name, layer in linear_layers(generator).items():  # noise alone, and a bias of PyTorch's with noise
        bias = theirs[names[f"{name}.bias"]].std()
        assert (bias < 0.09) == (name in wide) or layer.in_features > 16, name


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
    edges = to_dense(correlation_edges(z, EdgeList(n)), n)
    for i in range(n):
        for j in range(n):
            torch.testing.assert_close(edges[i, j], oracle.initial_edge(z[i], z[j]))
    if n > 1 and channels > 2:
        torch.testing.assert_close(edges.sum(dim=2), torch.corrcoef(z))


@given(st.integers(0, 7), st.integers(1, 5), st.integers(0, 99))
def test_sum_over_neighbours(n, channels, seed):
    values, listed = edge_values(n, channels, seed), EdgeList(n)
    torch.testing.assert_close(sum_over_neighbours(values, listed), to_dense(values, n).sum(dim=1))
    same_derivatives(lambda x: sum_over_neighbours(x, listed), lambda x: to_dense(x, n).sum(dim=1), values)


@pytest.mark.parametrize("n", [5, 6])
def test_gradients_of_half_precision_are_summed_in_float32_and_rounded_once(n):
    listed, given = EdgeList(n), edge_values(n, 64, 0).bfloat16()
    nodes = torch.zeros(n, 64, dtype=torch.bfloat16, requires_grad=True)
    first, second = at_ends(nodes, listed)
    (found,) = torch.autograd.grad((first * given + second * given).sum(), nodes)
    wide = torch.zeros(n, 64).index_add(0, listed.pairs(nodes.device).flatten(), given.float().repeat(2, 1))
    torch.testing.assert_close(found, wide.bfloat16(), rtol=0, atol=0)


@given(st.integers(0, 9), st.integers(1, 3), st.integers(0, 99))
def test_values_at_both_ends(n, channels, seed):
    """Their gradients are sums around the circle, written out; those of a lookup are autograd's."""
    values, listed = edge_values(n + 1, channels, seed)[:n], EdgeList(n)
    assert listed.is_whole_circle

    def apart(ends):
        return ends[0].sin() * ends[1] + ends[1].square()  # the two ends get different gradients

    pairs = listed.pairs(values.device)
    same_derivatives(lambda x: apart(at_ends(x, listed)), lambda x: apart((x[pairs[0]], x[pairs[1]])), values)


def edge_values(n, channels, seed):
    return torch.randn(n * (n + 1) // 2, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_derivatives(ours, theirs, x):
    """Assert that values, first and second derivatives of two functions are the same."""
    found = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        (once,) = torch.autograd.grad(value.cos().sum(), leaf, create_graph=True)
        found.append((value, once, *torch.autograd.grad(once.sin().sum(), leaf)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


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


@pytest.mark.parametrize("margin", [0.5, 17.0])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_classification_by_a_frozen_classifier_is_that_of_autograd(dtype, margin):
    """In float16, too, where the small errors of well classified rows would vanish."""
    torch.manual_seed(0)
    weight, bias, labels = 4 * torch.eye(20, 32), 0.01 * torch.randn(20), torch.arange(400) % 20
    rows = (weight[labels] * margin / 16 + 0.01 * torch.randn(400, 32)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = frozen_classification_loss(rows, weight.requires_grad_(), bias, labels)
    expected = classification_loss(F.linear(rows, weight.detach(), bias), labels)
    tolerance = {None: 1e-5, torch.float16: 0.05, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-6)
    actual, wanted = (torch.autograd.grad(value, rows)[0] for value in (loss, expected))
    assert (actual - wanted).norm() <= tolerance * wanted.norm()

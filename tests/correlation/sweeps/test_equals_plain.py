"""The swept propagation, whose gradients are written out, against the plain one, which autograd differentiates."""

import copy

import pytest
import torch
from helpers.strategies import NUM_CLASSES, embeddings, generators, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad

from pml_gca import GlobalCorrelationGenerator

CHUNKS = st.sampled_from([None, 1, 3, 7, 20, 10_000])
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}  # of the largest value


def outputs(generator, z, y, chunk=None, plain=False, seed=0):
    """Logits, coefficients, gradients of z and of all parameters, and buffers; the generator stays as it was."""
    propagation = copy.deepcopy(generator.propagation)
    propagation.edge_chunk_size = chunk
    torch.manual_seed(seed)
    found = (propagation.forward_plain if plain else propagation)(z, y)
    source = torch.Generator().manual_seed(1)
    total = sum(
        (x * torch.randn(x.shape, generator=source, dtype=torch.float64).to(x)).sum()
        for x in (found.node_logits, found.coefficients)
    )
    inputs = {"embeddings": z, **dict(propagation.named_parameters())}
    gradients = grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return {
        "node_logits": found.node_logits,
        "coefficients": found.coefficients,
        **{f"gradient of {name}": g for name, g in zip(inputs, gradients, strict=True)},
        **dict(propagation.named_buffers()),
    }


def assert_same(found, expected, tolerance):
    """Gradients are as exact as the largest of them all: some vanish but for rounding."""
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for name, value in expected.items() if value.numel() and "grad" in name)
    for name, value in found.items():
        scale = largest if "grad" in name else 1.0
        torch.testing.assert_close(
            value, expected[name], rtol=tolerance, atol=tolerance * max(scale, 1.0), msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=30)
@given(
    generators(sizes=(8, 12)),
    labels(max_classes=5, max_samples=4),
    CHUNKS,
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_swept_equals_plain_gradients_and_buffers_included(generator, y, chunk, training, dtype):
    generator.to(dtype).train(training)
    if not training:  # statistics that are not those of a new module
        for norm in (generator.propagation.node_norm, generator.propagation.edge_norm):
            norm.running_mean.fill_(0.3)
            norm.running_var.fill_(0.2)
    z = embeddings(generator, len(y), dtype=dtype)
    assert_same(outputs(generator, z, y, chunk), outputs(generator, z, y, plain=True), TOLERANCES[dtype])


@settings(max_examples=12)
@given(
    generators(dropout=0.4, sizes=(8, 12)),
    labels(max_classes=5, max_samples=4),
    CHUNKS,
    st.integers(0, 99),
    st.sampled_from([True, True, False]),
)
def test_dropout_is_that_of_the_seed_whatever_the_chunks(generator, y, chunk, seed, training):
    generator.train(training)
    z = embeddings(generator, len(y), seed)
    kept = outputs(generator, z, y, seed=seed)
    assert_same(outputs(generator, z, y, chunk, seed=seed), kept, TOLERANCES[torch.float64])
    assert_same(outputs(generator, z, y, plain=True, seed=seed), kept, TOLERANCES[torch.float64])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_comparisons_above_can_fail(dropout):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, 8, num_layers=2, dropout=dropout).double()
    y = torch.arange(6) % 3
    z = embeddings(generator, 6)
    plain = outputs(generator, z, y, plain=True, seed=dropout > 0)
    assert all(value.any() for name, value in plain.items() if "key.bias" not in name)
    with torch.no_grad():
        generator.propagation.layers[1].edge.expand_norm.bias[0] += 1e-3
    with pytest.raises(AssertionError):
        assert_same(outputs(generator, z, y), plain, TOLERANCES[torch.float64])


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_smallest_graphs(count, training, chunk):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(5, 8, dropout=0.2).double().train(training)
    z = embeddings(generator, count)
    y = torch.arange(count)
    assert_same(outputs(generator, z, y, chunk), outputs(generator, z, y, plain=True), TOLERANCES[torch.float64])

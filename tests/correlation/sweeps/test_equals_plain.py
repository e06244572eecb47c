"""The swept propagation against the plain one, which autograd differentiates: values in every precision, and memory."""

import copy

import pytest
import torch
from helpers.counters import LiveBytes
from helpers.strategies import NUM_CLASSES, embeddings, generators, labels, small_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from torch.autograd import grad

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.correlation.edges import edge_pairs
from pml_gca.correlation.sweeps.rows import add_product

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


def step(generator, z, y, dtype=None, draws=None):
    """Loss, coefficients and gradients of one step, under autocast if a dtype is given."""
    generator = copy.deepcopy(generator)
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator)
    loss.levels.metric.value.fill_(3.0)
    loss.levels.generator.value.fill_(14.0)
    z = z.detach().clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        total = loss(z, y)
        with torch.no_grad():
            coefficients = generator.propagation(z, y).coefficients
    total.backward()
    return total, coefficients.float(), [z.grad, *(p.grad for p in loss.parameters())]


def flat(tensors):
    return torch.cat([t.flatten().double() for t in tensors])


@pytest.mark.parametrize("chunk", [None, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(dtype, chunk):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(6, 128, dropout=0.0, edge_chunk_size=chunk)
    z, y = torch.randn(24, 128), torch.arange(24) // 4
    total, coefficients, gradients = step(generator, z, y)
    cast_total, cast_coefficients, cast_gradients = step(generator, z, y, dtype)
    apart = (cast_coefficients - coefficients).abs()
    assert apart.max() < 2e-2
    assert apart.mean() < 4e-3
    assert (cast_total - total).abs() < 1e-2 * total.abs()
    assert flat(cast_gradients).isfinite().all()
    for name, found, expected in (
        ("embeddings", cast_gradients[:1], gradients[:1]),
        ("all", cast_gradients, gradients),
    ):
        assert torch.cosine_similarity(flat(found), flat(expected), dim=0) > 0.99, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_change_little_under_autocast(dtype):
    generator, z, y = small_generator(), torch.randn(12, 16), torch.arange(12) // 2
    whole = step(generator, z, y, dtype)
    generator.propagation.edge_chunk_size = 10
    chunked = step(generator, z, y, dtype)
    torch.testing.assert_close(chunked[0], whole[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(chunked[1], whole[1], rtol=0, atol=1e-2)
    assert torch.cosine_similarity(flat(chunked[2]), flat(whole[2]), dim=0) > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_any_precision_are_summed_up_in_full(dtype):
    total, left, right = torch.ones(1, 1), torch.full((1, 1), 2.0**-9, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    for _ in range(512):
        add_product(total, left, right)
    assert total == 2


@pytest.mark.parametrize("chunk", [None, 10])
def test_parameters_in_half_precision(chunk):
    generator, z, y = small_generator(edge_chunk_size=chunk), torch.randn(12, 16), torch.arange(12) // 2
    _, coefficients, gradients = step(generator, z, y)
    half = copy.deepcopy(generator).to(torch.bfloat16)
    total, half_coefficients, half_gradients = step(half, z, y)
    assert total.isfinite()
    assert half_gradients[1].dtype == torch.bfloat16
    torch.testing.assert_close(half_coefficients, coefficients, rtol=0, atol=5e-2)
    assert torch.cosine_similarity(flat(half_gradients), flat(gradients), dim=0) > 0.98


@pytest.mark.parametrize("chunk", [None, 10])
def test_backward_may_run_inside_autocast(chunk):
    """There torch casts the matrix products of its own gradients, but not those of ours."""
    y, results = torch.arange(12) // 2, []
    for inside in (False, True):
        propagation = small_generator(edge_chunk_size=chunk).propagation
        z = torch.linspace(-3, 3, 12 * 16).sin().view(12, 16).requires_grad_()
        found = propagation(z, y)
        total = found.coefficients.square().sum() + found.node_logits.square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            total.backward()
        edge = propagation.layers[1].edge
        ours = [propagation.edge_norm.weight, propagation.edge_coefficients.weight, edge.expand.weight, edge.norm.bias]
        results.append(([p.grad for p in ours], [z.grad, *(p.grad for p in propagation.parameters())]))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(a, b)
    assert torch.cosine_similarity(flat(results[0][1]), flat(results[1][1]), dim=0) > 0.9999


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_kept_without_gradients(off, training, monkeypatch):
    monkeypatch.setattr("pml_gca.correlation.tiles.CPU_TILE_VALUES", 16 * 40)
    propagation, z, y = small_generator().propagation.train(training), torch.randn(60, 16), torch.arange(60) // 3
    with LiveBytes() as live:
        found = propagation(z, y)  # with gradients before, which decides to keep activations
        edges = found.coefficients.nbytes
        assert live.now > (3 + 2 * 9) * edges
    with off(), LiveBytes() as live:
        found = propagation(z, y)
        assert live.now <= edges + found.pairs.nbytes + found.node_logits.nbytes + 1000
        assert live.peak < 4 * edges
    assert not found.coefficients.requires_grad


def test_activations_are_kept_only_where_that_was_chosen():
    kept = {}
    for chunk in (None, 10_000):
        propagation, z, y = small_generator(edge_chunk_size=chunk).propagation, torch.randn(60, 16), torch.arange(60)
        with LiveBytes() as live:
            found = propagation(z, y % 6)
            size = found.coefficients.nbytes
            kept[chunk] = live.of_at_least(size) / size, live.now / size
    assert kept[10_000][0] == 2 + 1  # (E, D) tensors: one a layer, and the coefficients
    attention = 2 * propagation.layers[0].node.num_heads * 60 * 61 * 4 / size  # the weights of two layers
    assert kept[None][1] - kept[10_000][1] == pytest.approx(2 * 9 + attention, abs=0.2)


def test_pairs_are_those_of_the_graph():
    propagation, y = small_generator().propagation, torch.arange(7) % 3
    assert torch.equal(propagation(torch.randn(7, 16), y).pairs, edge_pairs(7))

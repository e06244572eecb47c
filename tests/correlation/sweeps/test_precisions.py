"""The swept propagation in other precisions."""

import copy

import pytest
import torch
from helpers.small_graphs import small_generator
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.correlation.sweeps.rows import add_product


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

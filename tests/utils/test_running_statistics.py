"""Running statistics in models of any precision, in averaged models, and in evaluation mode."""

import contextlib
import copy
import math

import pytest
import torch
from helpers.states import assert_unchanged, copied_state
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation.blocks import ScaleBatchNorm
from pml_gca.generators.batch import Batch
from pml_gca.losses.levels import RunningMean
from pml_gca.utils.running_statistics import restored_on_error

MAKERS = {
    "level": lambda: RunningMean(0.9),
    "level by epochs": lambda: RunningMean(None),
    "norm": lambda: ScaleBatchNorm(4),
}
SIZE = 8
LABELS = torch.arange(9) % 3


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def floating(module):
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_buffers_are_float32_or_wider(name, dtype):
    expected = torch.promote_types(dtype, torch.float32)
    with default_dtype(dtype):
        made = MAKERS[name]()
    assert {buffer.dtype for buffer in floating(made)} == {expected}
    moved = torch.nn.Sequential(MAKERS[name]()).to(dtype)
    assert {buffer.dtype for buffer in floating(moved)} == {expected}
    assert all(buffer.is_meta for buffer in moved.to("meta").buffers())


@pytest.mark.parametrize("momentum", [0.99, None])
def test_running_mean_created_in_half_precision_does_not_stall(momentum):
    with default_dtype(torch.bfloat16):
        level = RunningMean(momentum)
        for k in range(400):
            level.observe(torch.tensor(100.0 + k % 2))
        level.end_epoch()
    assert level.value.item() == pytest.approx(100.5, rel=1e-4)


def test_statistics_of_a_model_in_half_precision_do_not_stall():
    norm, wide = ScaleBatchNorm(4).bfloat16(), ScaleBatchNorm(4)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 0.01 + 1
    for _ in range(100):
        norm(x)
        wide(x)
    torch.testing.assert_close(norm.running_mean, wide.running_mean)
    torch.testing.assert_close(norm.running_var, wide.running_var)


AVERAGES = {"equal": {}, "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("momentum", [0.9, None])
def test_an_averaged_level_is_never_nan(kind, momentum):
    level = RunningMean(momentum)
    averaged = AveragedModel(level, use_buffers=True, **AVERAGES[kind])
    seen = []
    for step in range(5):
        averaged.update_parameters(level)
        seen.append(averaged.module.state_dict()["value"].item())
        level.observe(torch.tensor(3.0 + step))
        if step == 2:
            level.end_epoch()
    assert seen[0] == float("inf")
    assert not any(math.isnan(value) for value in seen)
    assert 3.0 <= seen[-1] <= 7.0
    averaged.module.observe(torch.tensor(5.0))
    averaged.module.end_epoch()
    assert 3.0 <= averaged.module.value.item() <= 7.0


def test_an_averaged_level_is_the_mean_of_levels():
    """If all values are finite, they are averaged like any numbers."""
    level = RunningMean(0.5)
    level.observe(torch.tensor(4.0))
    averaged = AveragedModel(level, use_buffers=True)
    for value in (4.0, 6.0, 11.0):
        level.value.fill_(value)
        averaged.update_parameters(level)
    assert averaged.module.value.item() == pytest.approx(7.0)


def make(chunk=None, dropout=0.0):
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(3, SIZE, num_layers=2, num_heads=2, dropout=dropout, edge_chunk_size=chunk)


@pytest.mark.parametrize("chunk", [None, 7])
def test_norms_in_evaluation_use_their_running_statistics_in_training(chunk):
    generator, z = make(chunk), torch.randn(9, SIZE)
    propagation = generator.propagation
    propagation(torch.randn(9, SIZE), LABELS)
    propagation.edge_norm.eval()
    propagation.node_norm.eval()
    before, plain = copied_state(propagation), copy.deepcopy(propagation)
    found, expected = propagation(z, LABELS), plain.forward_plain(z, LABELS)
    torch.testing.assert_close(found.coefficients, expected.coefficients)
    torch.testing.assert_close(found.node_logits, expected.node_logits)
    in_evaluation = copy.deepcopy(propagation).eval()(z, LABELS)
    torch.testing.assert_close(found.coefficients, in_evaluation.coefficients)
    assert_unchanged(propagation, before)
    weight = torch.randn_like(found.coefficients)
    gradients = [
        torch.autograd.grad((x.coefficients * weight).sum(), list(module.parameters()), materialize_grads=True,
                            allow_unused=True)
        for x, module in ((found, propagation), (expected, plain))
    ]  # fmt: skip
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_trains", [False, True])
def test_dropout_follows_its_own_mode(layer_trains):
    propagation, z = make(dropout=0.5).propagation, torch.randn(9, SIZE)
    propagation.eval()
    quiet = propagation(z, LABELS).coefficients
    for layer in propagation.layers:
        layer.training = layer_trains
        layer.edge.dropout.train(not layer_trains)
    torch.manual_seed(1)
    found = propagation(z, LABELS).coefficients
    torch.manual_seed(1)
    assert torch.equal(found, quiet) == layer_trains


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_moves(off, chunk):
    generator, z = make(chunk), torch.randn(9, SIZE)
    generator(z.clone().requires_grad_(), LABELS)
    before = copied_state(generator)
    assert before["propagation.edge_norm.num_batches_tracked"] == 1
    with off():
        generator(z, LABELS)
        generator.propagation(z, LABELS)
        generator.propagation.forward_plain(z, LABELS)
    assert_unchanged(generator, before)


def test_error_restores_buffers():
    norm = ScaleBatchNorm(4)
    before = copied_state(norm)
    with pytest.raises(RuntimeError), restored_on_error(norm.buffers()):
        norm(norm(torch.randn(6, 4)) @ torch.ones(3, 3))
    assert_unchanged(norm, before)
    with restored_on_error(norm.buffers()):
        norm(torch.randn(6, 4))
    assert norm.num_batches_tracked == 1


def test_late_error_in_the_generator_changes_nothing(monkeypatch):
    """On a GPU, labels out of range are noticed only after the propagation."""

    def fail(batch):
        raise ValueError("late")

    monkeypatch.setattr(Batch, "labels_on_host", fail)
    generator = make()
    before = copied_state(generator)
    with pytest.raises(ValueError, match="late"):
        generator(torch.randn(9, SIZE), LABELS)
    assert_unchanged(generator, before)

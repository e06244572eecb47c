import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.losses.levels import RunningMean

LABELS = torch.tensor([0, 0, 4, 4, 7])


def make_loss(**kwargs):
    return HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator(9, 8, num_heads=2), **kwargs)


def observe(level, values):
    for value in values:
        level.observe(torch.tensor(value))


@given(st.floats(0, 0.999), st.lists(st.floats(-100, 100) | st.sampled_from([math.nan, math.inf, -math.inf])))
def test_it_is_the_bias_corrected_running_mean_of_what_is_finite(momentum, values):
    level = RunningMean(momentum).double()
    observe(level, values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert level.value == math.inf
        return
    weights = [momentum ** (len(finite) - 1 - k) for k in range(len(finite))]
    expected = sum(w * v for w, v in zip(weights, finite, strict=True)) / sum(weights)
    assert level.value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_first_observation_is_the_level():
    level = RunningMean(0.99)
    observe(level, [7.0])
    assert level.value.item() == pytest.approx(7.0)


def test_in_float32_it_does_not_drift():
    level = RunningMean(0.99)
    observe(level, [5.0] * 5000)
    assert level.value.item() == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.99, None])
def test_a_model_in_half_precision_keeps_its_levels(dtype, momentum):
    level = torch.nn.Sequential(RunningMean(momentum)).to(dtype)[0]
    observe(level, [60.0] * 3000)
    level.end_epoch()
    assert level.value.item() == pytest.approx(60.0, rel=1e-4)


def test_without_momentum_it_is_the_mean_of_the_previous_epoch():
    level = RunningMean(None)
    observe(level, [1.0, 2.0, math.nan, 6.0])
    assert level.value == math.inf
    level.end_epoch()
    assert level.value == 3
    observe(level, [10.0, 20.0])
    assert level.value == 3
    level.end_epoch()
    assert level.value == 15
    level.end_epoch()  # nothing seen
    assert level.value == 15


def test_end_epoch_does_not_change_an_exponential_mean():
    level = RunningMean(0.5)
    observe(level, [1.0, 2.0])
    before = {name: value.clone() for name, value in level.state_dict().items()}
    level.end_epoch()
    assert all(torch.equal(value, before[name]) for name, value in level.state_dict().items())


def test_it_keeps_no_graph():
    level, loss = RunningMean(0.9), torch.tensor(2.0, requires_grad=True)
    level.observe(loss * 3)
    assert not level.value.requires_grad
    level.observe((loss * 3).half())
    assert level.value.dtype == torch.float32


@pytest.mark.parametrize("momentum", [0.9, None])
def test_the_loss_follows_both_levels_and_resumes_them_exactly(momentum):
    torch.manual_seed(0)
    loss = make_loss(level_momentum=momentum, collect_stats=True)
    assert loss.metric_level == loss.generator_level == math.inf
    metric, generator = RunningMean(momentum), RunningMean(momentum)
    for step in range(6):
        loss(torch.randn(5, 8), LABELS)
        metric.observe(torch.tensor(loss.metric_loss))
        objectives = loss.generator_loss - loss.generator.node_classification_loss
        generator.observe(torch.tensor(objectives - 10 * loss.generator.auxiliary_classification_loss))
        if step == 3:
            for level in (loss, metric, generator):
                level.end_epoch()
    assert loss.metric_level.item() == pytest.approx(metric.value.item(), rel=1e-5)
    assert loss.generator_level.item() == pytest.approx(generator.value.item(), rel=1e-4)

    resumed = make_loss(level_momentum=momentum)
    resumed.load_state_dict(loss.state_dict())
    for name, value in loss.levels.state_dict().items():
        assert torch.equal(resumed.levels.state_dict()[name], value), name
    z = torch.randn(5, 8)
    values = []
    for each in (loss, resumed):
        torch.manual_seed(5)
        values.append([each(z, LABELS).item() for _ in range(3)])
    assert values[0] == values[1]
    assert torch.equal(loss.metric_level, resumed.metric_level)


def test_levels_act_from_the_next_batch_on():
    """Earlier batches decide λ and the weight of a batch."""
    loss = make_loss(collect_stats=True)
    loss(torch.randn(5, 8), LABELS)
    assert loss.synthetic_weight == 0
    level = loss.generator_level.item()
    loss(torch.randn(5, 8), LABELS)
    assert loss.synthetic_weight == pytest.approx(1 - math.exp(-20 / level), rel=1e-5)


def test_evaluation_leaves_them_alone():
    loss = make_loss()
    loss(torch.randn(5, 8), LABELS)
    before = loss.metric_level.item(), loss.generator_level.item()
    loss.eval()(torch.randn(5, 8), LABELS)
    assert (loss.metric_level.item(), loss.generator_level.item()) == before


@pytest.mark.parametrize("labels", [[], [3, 3, 3], [0, 1, 2]])
def test_batch_without_negatives_leaves_the_generator_level(labels):
    loss = make_loss()
    loss(torch.randn(len(labels), 8), torch.tensor(labels, dtype=torch.long))
    assert loss.generator_level == math.inf


def test_empty_batch_leaves_the_level():
    loss = make_loss()
    loss(torch.randn(0, 8, requires_grad=True), torch.tensor([], dtype=torch.long))
    assert loss.metric_level == math.inf


def test_level_ignores_values_that_are_not_finite():
    class Broken(losses.ContrastiveLoss):
        def compute_loss(self, *args):
            found = super().compute_loss(*args)
            found["pos_loss"]["losses"] = found["pos_loss"]["losses"] * math.nan
            return found

        def get_default_reducer(self):
            return losses.NTXentLoss().reducer  # a plain mean

    loss = HardNegativeGenerationLoss(Broken(), GlobalCorrelationGenerator(9, 8))
    assert loss(torch.randn(5, 8), LABELS).isnan()
    assert loss.metric_level == math.inf

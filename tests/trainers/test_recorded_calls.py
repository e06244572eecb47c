"""Calls of the first step are recorded with their weight in the total, and repeated."""

import pytest
import torch
from pytorch_metric_learning import losses

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import RandomGenerator
from pml_gca.trainers.recorded_calls import recording, repeat_calls

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture
def loss():
    return HardNegativeGenerationLoss(losses.ContrastiveLoss(), RandomGenerator(3, 8))


@pytest.fixture
def z():
    torch.manual_seed(0)
    return torch.randn(6, 8, requires_grad=True)


def test_weights_of_several_uses_and_backward_passes_add_up(loss, z):
    calls = []
    with recording(loss, calls):
        value = loss(z, LABELS)
    (2 * value + value).backward(retain_graph=True)
    (4 * value).backward()
    assert [call.weight.item() for call in calls] == [7]
    with loss.phase("embedding"):
        torch.manual_seed(1)
        repeated = repeat_calls(loss, calls)
        torch.manual_seed(1)
        torch.testing.assert_close(repeated, 7 * loss(z, LABELS))


def test_a_call_outside_of_the_total_has_no_weight(loss, z):
    calls = []
    with recording(loss, calls):
        loss(z, LABELS)
    assert [call.weight for call in calls] == [None]
    loss(z, LABELS)
    assert len(calls) == 1


def test_a_tensor_passed_twice_stays_one_detached_tensor(loss, z):
    calls = []
    with recording(loss, calls):
        loss(z, LABELS, ref_emb=z, ref_labels=LABELS).backward()
    (call,) = calls
    assert call.args[0] is call.kwargs["ref_emb"]
    assert call.args[1] is call.kwargs["ref_labels"]
    assert not call.args[0].requires_grad
    assert torch.equal(call.args[0], z)

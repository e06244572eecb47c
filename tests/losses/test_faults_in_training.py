"""A batch of NaN, and steps that a gradient scaler skips, in the middle of a training."""

import math

import pytest
import torch
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, generator_of
from helpers.states import assert_bitwise_equal, assert_unchanged, copied_state
from pytorch_metric_learning import losses
from torch import nn

from pml_gca import HardNegativeGenerationLoss
from pml_gca.utils.host import HostCopy

WRAPPED = {
    "contrastive": losses.ContrastiveLoss,
    "n-pairs": losses.NPairsLoss,
    "proxy anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
}
INPUTS = 5


class Training:
    """A network with a BatchNorm, a loss with a memory, and their optimizer."""

    def __init__(self, name="contrastive"):
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, SIZE))
        self.loss = HardNegativeGenerationLoss(WRAPPED[name](), generator_of(), memory_size=20)
        groups = [{"params": self.network.parameters()}, *self.loss.parameter_groups(lr=1e-3)]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def forward(self, number, spoil=lambda embeddings: embeddings):
        torch.manual_seed(number)
        return self.loss(spoil(self.network(torch.randn(len(LABELS), INPUTS))), LABELS)

    def step(self, number):
        self.optimizer.zero_grad()
        self.forward(number).backward()
        self.optimizer.step()

    def parameters(self):
        return [p.detach().clone() for part in (self.network, self.loss) for p in part.parameters()]


def all_nan(embeddings):
    return embeddings * math.nan


def one_nan(embeddings):
    return torch.where(torch.arange(embeddings.numel()).view_as(embeddings) == 9, math.nan, embeddings)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize(("spoil", "count"), [(all_nan, 64), (one_nan, 1)])
def test_a_batch_of_nan_in_the_middle_leaves_no_trace(spoil, count, name, late, monkeypatch):
    if late:  # as on a GPU, which reports values when the batch has been computed
        monkeypatch.setattr(HostCopy, "ready", False)
    broken, whole = Training(name), Training(name)
    for training in (broken, whole):
        for number in range(3):
            training.step(number)
    before = copied_state(broken.loss)
    broken.network.eval()  # the network's own statistics are not the loss's
    with pytest.raises(ValueError, match=f"embeddings must be finite, got {count} NaN and 0 infinite of 64 values"):
        broken.forward(99, spoil)
    broken.network.train()
    assert_unchanged(broken.loss, before)
    for training in (broken, whole):
        for number in range(3, 5):
            training.step(number)
    assert_bitwise_equal(broken.optimizer.state_dict(), whole.optimizer.state_dict())
    for part in ("network", "loss"):
        assert_bitwise_equal(dict(getattr(broken, part).state_dict()), dict(getattr(whole, part).state_dict()))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_step_that_a_scaler_skips_keeps_what_its_forward_pass_has_seen(name):
    """As BatchNorm does: parameters stay; statistics, levels and memory are those of the forward pass, all finite."""
    training, forward_alone = Training(name), Training(name)
    for each in (training, forward_alone):
        each.step(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    parameters, optimizer_state = training.parameters(), training.optimizer.state_dict()
    training.optimizer.zero_grad()
    scaler.scale(training.forward(1) * 2.0**40).backward()  # more than float32 holds
    assert not all(p.grad.isfinite().all() for p in training.network.parameters())
    assert not all(p.grad.isfinite().all() for p in training.loss.parameters() if p.grad is not None)
    scaler.step(training.optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    assert_bitwise_equal(training.parameters(), parameters)
    assert_bitwise_equal(training.optimizer.state_dict(), optimizer_state)

    before = copied_state(forward_alone.loss)
    forward_alone.forward(1)
    for part in ("network", "loss"):
        found = dict(getattr(training, part).state_dict())
        assert_bitwise_equal(found, dict(getattr(forward_alone, part).state_dict()))
        assert all(value.isfinite().all() for value in found.values())
    moved = {key for key, value in training.loss.state_dict().items() if not torch.equal(value, before[key])}
    for kind in ("levels.metric.value", "levels.generator.value", "running_mean", "memory.queue.embeddings"):
        assert any(kind in key for key in moved), kind

    scaler.update(1024.0)
    training.optimizer.zero_grad()
    scaler.scale(training.forward(2)).backward()
    scaler.step(training.optimizer)
    assert not torch.equal(training.parameters()[0], parameters[0])
    assert all(p.isfinite().all() for p in training.parameters())

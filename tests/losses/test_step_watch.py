"""How long optimizer steps are watched, and the warning about a frozen loss."""

import copy
import gc
import pickle
import warnings

import pytest
import torch
from helpers.optimizer_steps import LABELS, make_loss, train, trunk_optimizer
from pytorch_metric_learning import losses
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import MixupGenerator


@pytest.fixture
def no_losses_left_from_before():
    gc.collect()


def test_a_copy_watches_for_itself():
    loss = make_loss()
    train(loss, [trunk_optimizer()], 8)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert len(train(other, [trunk_optimizer()], 8)) == 1
    midway = make_loss()
    train(midway, [trunk_optimizer()], 1)
    assert len(train(copy.deepcopy(midway), [trunk_optimizer()], 8)) == 1
    assert len(train(midway, [trunk_optimizer()], 8)) == 1


@pytest.mark.usefixtures("no_losses_left_from_before")
def test_watch_ends_with_its_first_finding():
    loss = make_loss()
    train(loss, [trunk_optimizer()], 1)
    assert len(_global_optimizer_post_hooks) == 1
    train(loss, [trunk_optimizer()], 8)
    assert not _global_optimizer_post_hooks


@pytest.mark.usefixtures("no_losses_left_from_before")
def test_deleted_loss_leaves_no_hook():
    thrown_away, other = make_loss(), make_loss()
    train(thrown_away, [trunk_optimizer()], 1)
    del thrown_away
    gc.collect()
    train(other, [trunk_optimizer(), torch.optim.SGD(other.parameter_groups(0.1))], 2)
    assert not _global_optimizer_post_hooks


@pytest.mark.usefixtures("no_losses_left_from_before")
def test_two_losses_at_once():
    """Both watches end inside one optimizer step."""
    first, second = make_loss(), make_loss()
    optimizer = torch.optim.SGD([*first.parameter_groups(0.1), *second.parameter_groups(0.1)])
    for _ in range(4):
        (first(torch.randn(6, 8), LABELS) + second(torch.randn(6, 8), LABELS)).backward()
        optimizer.step()
    assert not _global_optimizer_post_hooks


def test_other_optimizer_hooks_stay():
    seen = []
    loss = make_loss()
    loss(torch.randn(6, 8), LABELS).backward()
    handle = register_optimizer_step_post_hook(lambda *args: seen.append(args))
    optimizer = torch.optim.SGD(loss.parameter_groups(0.1))
    optimizer.step()
    optimizer.step()
    handle.remove()
    assert len(seen) == 2


def test_frozen_loss_in_evaluation_mode_warns_once():
    def train_frozen(loss, batches, **kwargs):
        return [text for text in train(loss, [trunk_optimizer()], batches, **kwargs) if "freeze_these" in text]

    frozen = make_loss().eval().requires_grad_(False)
    assert not train_frozen(frozen, 2)
    (message,) = train_frozen(frozen, 4)
    assert "without synthetic negatives" in message
    assert not train_frozen(frozen, 5)
    without = HardNegativeGenerationLoss(losses.NPairsLoss(), MixupGenerator(9, 8)).eval()
    assert len(train_frozen(without, 5)) == 1
    # What the message advises must not warn, nor must other uses.
    assert not train_frozen(make_loss().requires_grad_(False), 5)
    assert not train_frozen(make_loss().eval(), 5)
    assert not train_frozen(make_loss().eval().requires_grad_(False), 5, step_every=100)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        validated, trunk = make_loss().eval().requires_grad_(False), trunk_optimizer()
        for _ in range(5):
            validated(torch.randn(6, 8), LABELS)
            trunk.step()


def test_validation_between_training_batches_does_not_warn():
    """The loss has no parameters, and validation leaves gradients enabled."""
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), MixupGenerator(9, 8))
    trunk = trunk_optimizer()
    z = trunk.param_groups[0]["params"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(8):
            loss.train(batch % 2 == 0)(torch.randn(6, 8) + 0 * z.sum(), LABELS).backward()
            trunk.step()
        loss.eval()
        for _ in range(8):
            loss(torch.randn(6, 8) + 0 * z.sum(), LABELS)

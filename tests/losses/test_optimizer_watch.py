import copy
import gc
import pickle
import warnings

import pytest
import torch
from pytorch_metric_learning import losses, trainers
from torch.optim.optimizer import _global_optimizer_post_hooks, register_optimizer_step_post_hook

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LABELS = torch.tensor([0, 0, 4, 4, 7, 7])


@pytest.fixture(autouse=True)
def no_losses_left_from_before():
    gc.collect()


def make_loss():
    return HardNegativeGenerationLoss(losses.NPairsLoss(), GlobalCorrelationGenerator(9, 8, num_layers=1, num_heads=2))


def train(loss, optimizers, batches, step_every=1):
    """Warnings about the optimizer, from a loop over batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in range(batches):
            z = optimizers[0].param_groups[0]["params"][0]
            loss(z.detach() + torch.randn(6, 8) + 0 * z.sum(), LABELS).backward()
            if (batch + 1) % step_every == 0:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    return [str(w.message) for w in caught if "HardNegativeGenerationLoss" in str(w.message)]


def trunk_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(6, 8))], lr=0.1)


def test_a_forgotten_optimizer_is_told_once():
    loss = make_loss()
    (message,) = train(loss, [trunk_optimizer()], 8)
    assert '"metric_loss_optimizer": AdamW(loss.parameter_groups(lr=1.5e-4))' in message
    assert not train(loss, [trunk_optimizer()], 5)


def test_two_optimizers_that_both_forget_it_make_one_warning():
    assert len(train(make_loss(), [trunk_optimizer(), trunk_optimizer()], 8)) == 1


@pytest.mark.parametrize("step_every", [1, 4])
def test_an_optimizer_that_holds_it_is_enough(step_every):
    loss = make_loss()
    own = torch.optim.Adam(loss.parameter_groups(1e-3))
    assert not train(loss, [trunk_optimizer(), own], 8, step_every)
    assert not train(make_loss(), [trunk_optimizer()], 1)  # too early to tell


def test_one_optimizer_for_everything():
    loss, trunk = make_loss(), torch.nn.Parameter(torch.zeros(6, 8))
    assert not train(loss, [torch.optim.Adam([{"params": [trunk]}, *loss.parameter_groups(1e-3)])], 8)


def test_accumulating_gradients_raises_no_alarm():
    assert not train(make_loss(), [trunk_optimizer()], 20, step_every=100)
    assert len(train(make_loss(), [trunk_optimizer()], 20, step_every=5)) == 1


def test_a_generator_that_steps_less_often_than_the_trunk_raises_no_alarm():
    """Gradients of the generator accumulated over more batches than the trunk's."""
    loss, trunk = make_loss(), trunk_optimizer()
    own = torch.optim.Adam(loss.parameter_groups(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(8):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            if batch % 2:
                own.step()


def test_evaluation_and_a_frozen_generator_raise_no_alarm():
    assert not train(make_loss().eval(), [trunk_optimizer()], 8)
    frozen = make_loss()
    frozen.generator.requires_grad_(False)
    assert not train(frozen, [trunk_optimizer()], 8)


def test_a_copy_watches_for_itself():
    loss = make_loss()
    train(loss, [trunk_optimizer()], 8)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert len(train(other, [trunk_optimizer()], 8)) == 1
    midway = make_loss()
    train(midway, [trunk_optimizer()], 1)
    assert len(train(copy.deepcopy(midway), [trunk_optimizer()], 8)) == 1
    assert len(train(midway, [trunk_optimizer()], 8)) == 1


def test_the_watch_ends_with_its_first_finding():
    loss = make_loss()
    train(loss, [trunk_optimizer()], 1)
    assert len(_global_optimizer_post_hooks) == 1
    train(loss, [trunk_optimizer()], 8)
    assert not _global_optimizer_post_hooks


def test_a_loss_that_is_thrown_away_leaves_no_hook():
    thrown_away, other = make_loss(), make_loss()
    train(thrown_away, [trunk_optimizer()], 1)
    del thrown_away
    gc.collect()
    train(other, [trunk_optimizer(), torch.optim.SGD(other.parameter_groups(0.1))], 2)
    assert not _global_optimizer_post_hooks


def test_two_losses_at_once():
    """Their watches end inside the same optimizer's step."""
    first, second = make_loss(), make_loss()
    optimizer = torch.optim.SGD([*first.parameter_groups(0.1), *second.parameter_groups(0.1)])
    for _ in range(4):
        (first(torch.randn(6, 8), LABELS) + second(torch.randn(6, 8), LABELS)).backward()
        optimizer.step()
    assert not _global_optimizer_post_hooks


def test_somebody_elses_hook_goes_on():
    seen = []
    loss = make_loss()
    loss(torch.randn(6, 8), LABELS).backward()
    handle = register_optimizer_step_post_hook(lambda *args: seen.append(args))
    optimizer = torch.optim.SGD(loss.parameter_groups(0.1))
    optimizer.step()
    optimizer.step()
    handle.remove()
    assert len(seen) == 2


@pytest.mark.parametrize("forgotten", [True, False])
def test_in_a_trainer_of_pml(forgotten):
    torch.manual_seed(0)
    loss, trunk = make_loss(), torch.nn.Linear(5, 8)
    optimizers = {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.01)}
    if not forgotten:
        optimizers["metric_loss_optimizer"] = torch.optim.AdamW(loss.parameter_groups(lr=1e-3))
    before = [p.clone() for p in loss.generator.parameters()]
    data = torch.utils.data.TensorDataset(torch.randn(24, 5), torch.arange(24) % 4)
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers=optimizers,
        batch_size=8,
        loss_funcs={"metric_loss": loss},
        dataset=data,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    trainer.iterations_per_epoch = 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(num_epochs=3)
    assert sum("HardNegativeGenerationLoss" in str(w.message) for w in caught) == int(forgotten)
    changed = [not torch.equal(p, q) for p, q in zip(loss.generator.parameters(), before, strict=True)]
    assert all(changed) != forgotten
    assert any(changed) != forgotten


def test_steps_that_a_grad_scaler_skips_raise_no_alarm():
    loss = make_loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own, other = torch.optim.SGD(loss.parameter_groups(lr=0.1), lr=0.1), trunk_optimizer()
        for _ in range(6):
            loss(torch.randn(6, 8), LABELS).backward()
            other.step()  # the generator's gradients overflowed: only they are thrown away
            own.zero_grad()

"""A generator that no optimizer trains is noticed, and one that is trained raises no alarm."""

import gc
import warnings

import pytest
import torch
from helpers.optimizer_steps import LABELS, make_loss, train, trunk_optimizer
from pytorch_metric_learning import trainers


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


@pytest.mark.parametrize("clears", [False, True])
@pytest.mark.parametrize("steps", [range(1, 99, 2), range(3, 99, 4), range(4, 99, 5), range(12, 99)])
def test_a_generator_that_steps_seldom_or_late_raises_no_alarm(steps, clears):
    """It accumulates gradients over more batches than the trunk, or waits for a warm-up to end."""
    loss, trunk = make_loss(), trunk_optimizer()
    own = torch.optim.Adam(loss.parameter_groups(1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in range(15):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            if batch in steps:
                own.step()
            if clears:
                loss.zero_grad()


@pytest.mark.parametrize("update", [lambda p: p.data.sub_(1e-3 * p.grad), lambda p: setattr(p, "data", p.data * 0.999)])
def test_parameters_that_change_are_trained_by_whatever_it_is(update):
    loss, trunk = make_loss(), trunk_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            for p in loss.generator.parameters():
                update(p)


def forget(loss, batches=8, clears=True):
    """Messages of a loop that trains a trunk, and never the generator."""
    trunk = trunk_optimizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            if clears:
                loss.zero_grad()
    return [str(w.message) for w in caught]


def test_gradients_that_the_next_batch_does_not_find_are_seen():
    (message,) = forget(make_loss())
    assert message.startswith("Optimizers step, but so far none that holds")


def test_an_optimizer_of_another_loss_or_one_that_is_gone_is_none():
    loss, other = make_loss(), make_loss()
    kept = torch.optim.SGD(other.parameter_groups(0.1))
    gone = torch.optim.SGD(loss.parameter_groups(0.1))
    del gone
    gc.collect()
    assert len(forget(loss)) == 1
    del kept


def test_a_generator_that_is_frozen_at_first_is_watched_from_then_on():
    loss = make_loss()
    loss.generator.requires_grad_(False)
    with torch.no_grad():
        loss(torch.randn(6, 8), LABELS)
    assert not train(loss, [trunk_optimizer()], 5)
    loss.generator.requires_grad_(True)
    assert len(forget(loss)) == 1


def test_batches_without_gradient_raise_no_alarm():
    """Somebody looks at the loss, and trains with something else."""
    loss, trunk = make_loss(), trunk_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            loss(torch.randn(6, 8), LABELS)
            trunk.step()


def test_evaluation_and_a_frozen_generator_raise_no_alarm():
    assert not train(make_loss().eval(), [trunk_optimizer()], 8)
    frozen = make_loss()
    frozen.generator.requires_grad_(False)
    assert not train(frozen, [trunk_optimizer()], 8)


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


@pytest.mark.parametrize("holds", [True, False])
def test_steps_that_a_grad_scaler_skips(holds):
    """Gradients of the generator overflow, batch after batch."""
    loss, trunk = make_loss(), trunk_optimizer()
    own = torch.optim.SGD(loss.parameter_groups(lr=0.1)) if holds else None
    before = [p.clone() for p in loss.generator.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            z = trunk.param_groups[0]["params"][0]
            scaler.scale(loss(torch.randn(6, 8) + 0 * z.sum(), LABELS)).backward()
            for p in loss.generator.parameters():
                p.grad.fill_(torch.inf)
            for optimizer in (trunk, own) if holds else (trunk,):
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(loss.generator.parameters(), before, strict=True))
    assert len(caught) == (0 if holds else 1)

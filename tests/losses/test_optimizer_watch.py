"""A generator that no optimizer trains causes a warning; a trained one does not."""

import gc
import warnings

import pytest
import torch
from helpers.optimizer_steps import LABELS, make_loss, train, trunk_optimizer
from pytorch_metric_learning import trainers


def test_missing_optimizer_warns_once():
    loss = make_loss()
    (message,) = train(loss, [trunk_optimizer()], 8)
    assert '"metric_loss_optimizer": AdamW(loss.parameter_groups(lr=1.5e-4))' in message
    assert not train(loss, [trunk_optimizer()], 5)


def test_two_optimizers_without_the_parameters_warn_once():
    assert len(train(make_loss(), [trunk_optimizer(), trunk_optimizer()], 8)) == 1


@pytest.mark.parametrize("step_every", [1, 4])
def test_optimizer_with_the_parameters_prevents_the_warning(step_every):
    loss = make_loss()
    own = torch.optim.Adam(loss.parameter_groups(1e-3))
    assert not train(loss, [trunk_optimizer(), own], 8, step_every)
    assert not train(make_loss(), [trunk_optimizer()], 1)  # too early to tell


def test_one_optimizer_for_everything():
    loss, trunk = make_loss(), torch.nn.Parameter(torch.zeros(6, 8))
    assert not train(loss, [torch.optim.Adam([{"params": [trunk]}, *loss.parameter_groups(1e-3)])], 8)


def test_accumulated_gradients_do_not_warn():
    assert not train(make_loss(), [trunk_optimizer()], 20, step_every=100)
    assert len(train(make_loss(), [trunk_optimizer()], 20, step_every=5)) == 1


@pytest.mark.parametrize("clears", [False, True])
@pytest.mark.parametrize("steps", [range(1, 99, 2), range(3, 99, 4), range(4, 99, 5), range(12, 99)])
def test_optimizer_that_steps_rarely_or_late_does_not_warn(steps, clears):
    """The generator accumulates gradients over more batches than the trunk, or waits for the end of a warm-up."""
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
def test_parameters_changed_by_other_code_count_as_trained(update):
    loss, trunk = make_loss(), trunk_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            for p in loss.generator.parameters():
                update(p)


def forget(loss, batches=8, clears=True):
    """Return the warnings of a loop that trains a trunk, but never the generator."""
    trunk = trunk_optimizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            loss(torch.randn(6, 8), LABELS).backward()
            trunk.step()
            if clears:
                loss.zero_grad()
    return [str(w.message) for w in caught]


def test_cleared_gradients_are_still_noticed():
    (message,) = forget(make_loss())
    assert message.startswith("Optimizers step, but so far none that holds")


def test_optimizers_of_other_losses_and_deleted_ones_do_not_count():
    loss, other = make_loss(), make_loss()
    kept = torch.optim.SGD(other.parameter_groups(0.1))
    gone = torch.optim.SGD(loss.parameter_groups(0.1))
    del gone
    gc.collect()
    assert len(forget(loss)) == 1
    del kept


def test_watch_starts_when_the_generator_is_unfrozen():
    loss = make_loss()
    loss.generator.requires_grad_(False)
    with torch.no_grad():
        loss(torch.randn(6, 8), LABELS)
    assert not train(loss, [trunk_optimizer()], 5)
    loss.generator.requires_grad_(True)
    assert len(forget(loss)) == 1


def test_batches_without_gradient_do_not_warn():
    """The loss is only monitored; training uses another one."""
    loss, trunk = make_loss(), trunk_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            loss(torch.randn(6, 8), LABELS)
            trunk.step()


def test_evaluation_and_frozen_generators_do_not_warn():
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
def test_grad_scaler_that_skips_steps(holds):
    """Gradients of the generator overflow in every batch."""
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

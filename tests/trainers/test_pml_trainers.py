"""PML's own trainers, run for real with the loss and the miner."""

import copy
import warnings

import numpy as np
import pytest
import torch
from helpers.states import assert_unchanged, copied_state
from pytorch_metric_learning import losses, samplers, trainers
from pytorch_metric_learning.utils.common_functions import EmbeddingDataset
from torch import nn

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss

CLASSES, PER_CLASS, WIDTH, D = 5, 8, 10, 16
BATCH, ITERATIONS = 12, 12
TRAINERS = (trainers.MetricLossOnly, trainers.TrainWithClassifier)
WRAPPED = (losses.NPairsLoss, losses.MultiSimilarityLoss)


def make_dataset(names=range(CLASSES)):
    torch.manual_seed(0)
    classes = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    images = torch.randn(CLASSES, WIDTH)[classes] + 0.3 * torch.randn(len(classes), WIDTH)
    return EmbeddingDataset(images, torch.tensor(list(names))[classes])


def make_loss(wrapped=None, **kwargs):
    torch.manual_seed(1)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2)
    return HardNegativeGenerationLoss(wrapped or losses.NPairsLoss(), generator, **kwargs)


def make_trainer(loss, trainer=trainers.MetricLossOnly, dataset=None, with_optimizer=True, **kwargs):
    """Make a trainer of `loss` with a `history` of the metric loss of every iteration."""
    dataset = dataset or make_dataset()
    torch.manual_seed(2)
    models = {"trunk": nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, D))}
    loss_funcs = {"metric_loss": loss}
    if trainer is trainers.TrainWithClassifier:
        models["classifier"] = nn.Linear(D, CLASSES)
        loss_funcs["classifier_loss"] = nn.CrossEntropyLoss()
    optimizers = {f"{name}_optimizer": torch.optim.Adam(m.parameters(), lr=5e-3) for name, m in models.items()}
    if with_optimizer and isinstance(loss, HardNegativeGenerationLoss):
        optimizers["metric_loss_optimizer"] = torch.optim.AdamW(loss.parameter_groups(lr=1e-3), weight_decay=0.0)
    history = []
    made = trainer(
        models,
        optimizers,
        BATCH,
        loss_funcs,
        dataset,
        sampler=samplers.MPerClassSampler(dataset.labels, 3, BATCH, BATCH * ITERATIONS),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=lambda t: history.append(t.losses["metric_loss"].item()),
        **kwargs,
    )
    made.history = history
    return made


def seeded_training(trainer, num_epochs=1, seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - PML's sampler draws from it
    trainer.train(num_epochs=num_epochs)


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_everything_trains(trainer, wrapped):
    loss = make_loss(wrapped(), collect_stats=True)
    terms = []
    before = copied_state(loss)
    made = make_trainer(loss, trainer)
    count = made.end_of_iteration_hook
    made.end_of_iteration_hook = lambda t: (count(t), terms.append((loss.metric_loss, loss.generator_loss)))
    trunk = copied_state(made.models["trunk"])
    seeded_training(made, num_epochs=3)

    unchanged = {name for name, value in loss.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == set()
    assert not any(torch.equal(value, trunk[name]) for name, value in made.models["trunk"].state_dict().items())
    assert len(made.history) == len(terms) == 3 * ITERATIONS
    total, (metric, generator) = torch.tensor(made.history), torch.tensor(terms).unbind(1)
    for curve, share in ((total, 0.99), (metric, 0.8), (generator, 0.99)):
        assert torch.isfinite(curve).all()
        assert curve[-6:].mean() < share * curve[:6].mean()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in loss.parameters())
    assert loss.metric_level.isfinite()
    assert loss.generator_level.isfinite()


def test_proxies_train_with_the_generator():
    loss = make_loss(losses.ProxyAnchorLoss(CLASSES, D))
    made = make_trainer(loss)
    proxies = loss.loss.proxies.detach().clone()
    seeded_training(made)
    assert not torch.equal(loss.loss.proxies, proxies)


def test_two_runs_from_one_seed_are_equal():
    runs = []
    for _ in range(2):
        loss = make_loss(losses.MultiSimilarityLoss())
        made = make_trainer(loss, trainers.TrainWithClassifier)
        seeded_training(made)
        runs.append((made.history, copied_state(loss), copied_state(made.models["trunk"])))
    assert runs[0][0] == runs[1][0]
    for first, second in zip(runs[0][1:], runs[1][1:], strict=True):
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_a_frozen_loss_is_the_wrapped_loss_alone():
    loss = make_loss()
    before = copied_state(loss)
    frozen = make_trainer(loss, freeze_these=["metric_loss"])
    plain = make_trainer(losses.NPairsLoss())
    with pytest.warns(
        UserWarning, match='freeze_these=.*without synthetic negatives.*take "metric_loss" out'
    ) as caught:
        seeded_training(frozen, num_epochs=2)
    assert sum("freeze_these" in str(w.message) for w in caught) == 1
    seeded_training(plain, num_epochs=2)
    assert frozen.history == plain.history
    assert_unchanged(frozen.models["trunk"], plain.models["trunk"].state_dict())
    assert_unchanged(loss, before)
    assert not any(module.training for module in loss.modules())


@pytest.mark.filterwarnings("ignore:HardNegativeGenerationLoss is frozen")
def test_a_loss_that_is_no_longer_frozen_learns():
    loss = make_loss()
    made = make_trainer(loss, freeze_these=["metric_loss"])
    seeded_training(made)
    before = copied_state(loss.generator)
    for parameter in loss.parameters():
        parameter.requires_grad = True
    made.freeze_these = []
    seeded_training(made)
    assert all(not torch.equal(p, before[name]) for name, p in loss.generator.named_parameters())


LABELS = (100, 17, 42, 999, 3)


def test_pml_renumbers_labels():
    dataset = make_dataset(LABELS)
    loss = make_loss()
    made = make_trainer(loss, dataset=dataset, dataset_labels=dataset.labels.tolist(), set_min_label_to_zero=True)
    before = copied_state(loss.generator)
    seeded_training(made)
    assert all(not torch.equal(p, before[name]) for name, p in loss.generator.named_parameters())


@pytest.mark.parametrize("kwargs", [{}, {"dataset_labels": list(LABELS)}])
def test_labels_without_renumbering_raise(kwargs):
    loss = make_loss()
    before = copied_state(loss)
    made = make_trainer(loss, dataset=make_dataset(LABELS), **kwargs)
    with pytest.raises(ValueError, match=r"labels must lie in .* \[0, 5\).*dataset_labels.*set_min_label_to_zero=True"):
        seeded_training(made)
    assert_unchanged(loss, before)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_missing_optimizer_warns_once(trainer):
    made = make_trainer(make_loss(), trainer, with_optimizer=False)
    with pytest.warns(UserWarning, match="metric_loss_optimizer") as caught:
        seeded_training(made, num_epochs=2)
    assert sum("metric_loss_optimizer" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_warning_where_an_optimizer_steps(trainer):
    made = make_trainer(make_loss(), trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seeded_training(made)
    assert not [w for w in caught if "metric_loss_optimizer" in str(w.message)]


def test_two_losses_in_one_process():
    """Each watches for its optimizer's first step, without affecting the other."""
    trained = [make_loss(), make_loss()]
    optimizers = [torch.optim.AdamW(loss.parameter_groups(lr=1e-3)) for loss in trained]
    torch.manual_seed(6)
    embeddings, labels = torch.randn(6, D, requires_grad=True), torch.arange(3).repeat(2)
    for _ in range(2):
        sum(loss(embeddings, labels) for loss in trained).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_loss_without_optimizer_does_not_affect_the_next():
    idle = make_loss()
    torch.manual_seed(6)
    idle(torch.randn(6, D, requires_grad=True), torch.arange(3).repeat(2)).backward()
    made = make_trainer(make_loss())
    seeded_training(made)
    assert len(made.history) == ITERATIONS


@pytest.mark.parametrize("output", ["triplets", "pairs"])
def test_miner_with_the_loss(output):
    loss = make_loss(losses.MultiSimilarityLoss())
    miner = GlobalCorrelationMiner(loss.generator, negatives_per_anchor=2, output=output)
    made = make_trainer(loss, mining_funcs={"tuple_miner": miner})
    before = copied_state(loss.generator)
    seeded_training(made, num_epochs=2)
    assert torch.tensor(made.history).isfinite().all()
    assert all(not torch.equal(p, before[name]) for name, p in loss.generator.named_parameters())
    assert all(module.training for module in loss.generator.modules())


@pytest.mark.parametrize(
    ("wrapped", "output"),
    [(losses.TripletMarginLoss, "triplets"), (losses.ContrastiveLoss, "pairs"), (losses.ContrastiveLoss, "triplets")],
)
def test_miner_with_a_plain_loss(wrapped, output):
    generator = make_loss().generator
    before = copied_state(generator)
    miner = GlobalCorrelationMiner(generator, negatives_per_anchor=2, output=output)
    made = make_trainer(wrapped(), mining_funcs={"tuple_miner": miner})
    seeded_training(made, num_epochs=3)
    assert torch.tensor(made.history[-6:]).mean() < torch.tensor(made.history[:6]).mean()
    assert_unchanged(generator, before)
    assert all(p.grad is None for p in generator.parameters())


def test_miner_affects_the_wrapped_loss_but_not_generation():
    torch.manual_seed(4)
    embeddings, labels = torch.randn(12, D), torch.arange(4).repeat(3)
    loss = make_loss(losses.TripletMarginLoss(), collect_stats=True)
    values = {}
    for mined in (False, True):
        copied = copy.deepcopy(loss)
        indices = GlobalCorrelationMiner(copied.generator)(embeddings, labels) if mined else None
        torch.manual_seed(5)
        copied(embeddings, labels, indices)
        values[mined] = (copied.metric_loss, copied.generator_loss, copied.generator.hardness)
    assert values[True][0] != values[False][0]
    assert values[True][1:] == values[False][1:]

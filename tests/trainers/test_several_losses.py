"""Losses with a generator beside others, in any container, under our trainers."""

import copy
import warnings

import pytest
import torch
from helpers.several_losses import (
    EPOCHS,
    HOLDERS,
    ITERATIONS,
    LABELS,
    CountedMiner,
    CountedProxies,
    as_dict,
    as_list,
    generating,
    make,
    make_optimizers,
    train,
    written_out,
)
from pytorch_metric_learning import losses
from torch import nn

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import ClassifiedGenerator, ConstantGenerator, HardnessAwareGenerator, MixupGenerator
from pml_gca.generators import interpolation_generator as module
from pml_gca.losses import CrossBatchMemory
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer

pytestmark = pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used in a non-distributed")


@pytest.fixture(autouse=True)
def same_draws(monkeypatch):
    """Use fixed weights: data loading also draws random numbers."""
    weights = module.class_weights
    monkeypatch.setattr(module, "class_weights", lambda *args: weights(*args[:-1], torch.full_like(args[-1], 0.3)))


@pytest.mark.parametrize("trainer_class", [AlternatingTrainer, AutocastTrainer])
@pytest.mark.parametrize("holder", HOLDERS)
def test_losses_with_a_generator_make_both_steps_and_others_one(holder, trainer_class):
    embedder, metric_loss, proxies, images = make(holder)
    expected_embedder, expected_loss = copy.deepcopy((embedder, metric_loss))
    trainer = train(trainer_class, embedder, metric_loss, images)
    expected = written_out(holder, expected_embedder, expected_loss, images, trainer_class is AlternatingTrainer)
    assert trainer.history == pytest.approx(expected, rel=1e-12)
    for ours, theirs in ((embedder, expected_embedder), (metric_loss, expected_loss)):
        state = theirs.state_dict()
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-11, atol=1e-13, msg=name)
    for loss in metric_loss.modules():
        if isinstance(loss, HardNegativeGenerationLoss):
            assert torch.isfinite(loss.metric_level)
            assert torch.isfinite(loss.generator_level)
            assert not loss._forward_hooks
        elif isinstance(loss, (CountedProxies, CountedMiner)):
            assert loss.calls == EPOCHS * ITERATIONS
    # In PML's optimizers a plain loss's parameters have as many steps as there are iterations.
    assert trainer.optimizers["metric_loss_optimizer"].state[proxies.proxies]["step"] == EPOCHS * ITERATIONS


def test_memory_stores_each_batch_once_in_both_steps():
    """The second step uses the same references as the first."""
    met = []

    class Watched(GlobalCorrelationGenerator):
        def generate(self, batch, *args):
            met.append(batch.embeddings.detach().clone())
            return super().generate(batch, *args)

    loss = generating(generator=Watched(3, 8, num_layers=1, num_heads=2))
    memory = CrossBatchMemory(loss, 8, memory_size=100).double()
    embedder, _, _, images = make(as_list)
    train(AlternatingTrainer, embedder, memory, images)
    assert memory.queue_idx == len(LABELS) * EPOCHS * ITERATIONS
    assert len(met) == 2 * EPOCHS * ITERATIONS
    assert all(torch.equal(first, second) for first, second in zip(met[::2], met[1::2], strict=True))
    assert len(met[-1]) > len(LABELS)


def test_one_generator_of_two_losses():
    generator = GlobalCorrelationGenerator(3, 8, num_layers=1, num_heads=2)
    pair = losses.MultipleLosses([generating(generator=generator), generating(losses.TripletMarginLoss, generator)])
    embedder, _, _, images = make(as_list)
    trainer = train(AlternatingTrainer, embedder, pair, images)
    state = trainer.optimizers["metric_loss_optimizer"].state
    assert {int(state[p]["step"]) for p in generator.objective.classifier.parameters()} == {EPOCHS * ITERATIONS}
    # Parameters that the very first step does not reach have no gradient yet.
    steps = {int(state[p]["step"]) for p in generator.propagation.parameters()}
    assert steps == {2 * EPOCHS * ITERATIONS - 1, 2 * EPOCHS * ITERATIONS}


def without_objective(name):
    if name == "without parameters":
        return MixupGenerator(3, 8)
    return ClassifiedGenerator(ConstantGenerator(3, 8), num_layers=1, num_heads=2, dropout=0.0)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("name", ["without parameters", "node classification alone"])
def test_a_generator_without_an_objective_is_stepped_once(name, beside):
    """The result equals that of a trainer with one step."""
    results = []
    for trainer_class in (AlternatingTrainer, AutocastTrainer):
        torch.manual_seed(0)
        embedder, images = nn.Linear(5, 8).double(), torch.randn(len(LABELS), 5, dtype=torch.float64)
        loss = generating(generator=without_objective(name))
        holder = losses.MultipleLosses([loss, losses.ProxyAnchorLoss(3, 8).double()]) if beside else loss
        optimizers = make_optimizers(embedder, holder) if list(holder.parameters()) else {}
        optimizers.setdefault("embedder_optimizer", torch.optim.AdamW(embedder.parameters(), lr=3e-3))
        trainer = train(trainer_class, embedder, holder, images, optimizers)
        results.append((trainer.history, embedder.state_dict(), holder.state_dict()))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_frozen_generator_still_generates():
    """The advice in the warning about a frozen loss works."""
    embedder, _, _, images = make(as_list)
    loss = generating(collect_stats=True)
    loss.requires_grad_(False)
    before = [p.clone() for p in loss.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(
            AlternatingTrainer,
            embedder,
            loss,
            images,
            {"embedder_optimizer": torch.optim.SGD(embedder.parameters(), 0.1)},
        )
    assert loss.generator.num_negatives > 0
    assert all(torch.equal(p, q) for p, q in zip(loss.parameters(), before, strict=True))


@pytest.mark.filterwarnings("ignore:HardNegativeGenerationLoss is frozen")
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_frozen_metric_loss_equals_its_plain_losses(with_optimizer):
    """In evaluation mode nothing alternates, and no optimizer is needed."""
    results = []
    for trainer_class, generates in ((AlternatingTrainer, True), (AutocastTrainer, False)):
        torch.manual_seed(0)
        embedder, images = nn.Linear(5, 8).double(), torch.randn(len(LABELS), 5, dtype=torch.float64)
        first = generating() if generates else losses.ContrastiveLoss()
        loss = losses.MultipleLosses([first, losses.TripletMarginLoss()])
        optimizers = {"embedder_optimizer": torch.optim.AdamW(embedder.parameters(), lr=3e-3)}
        if with_optimizer and generates:
            optimizers["metric_loss_optimizer"] = torch.optim.AdamW(loss.parameters())
        trainer = train(trainer_class, embedder, loss, images, optimizers, freeze_these=("metric_loss",))
        results.append((trainer.history, embedder.weight))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_second_step_leaves_other_classifiers_alone():
    loss = generating(generator=HardnessAwareGenerator(3, 8, reembed=True))
    embedder, _, _, images = make(as_list)
    trainer = train(AlternatingTrainer, embedder, loss, images)
    state = trainer.optimizers["metric_loss_optimizer"].state
    counts = [{int(state[p]["step"]) for p in part.parameters()} for part in loss.generator.children()]
    assert counts == [{2 * EPOCHS * ITERATIONS - 1}, {EPOCHS * ITERATIONS}]


def test_a_node_classifier_beside_a_generator_with_an_objective_is_stepped_once():
    inner = HardnessAwareGenerator(3, 8, reembed=True)
    loss = generating(generator=ClassifiedGenerator(inner, num_layers=1, dropout=0.0))
    embedder, _, _, images = make(as_list)
    trainer = train(AlternatingTrainer, embedder, loss, images)
    state = trainer.optimizers["metric_loss_optimizer"].state
    parts = (loss.generator.propagation, inner.network, inner.auxiliary_classifier)
    counts = [{int(state[p]["step"]) for p in part.parameters()} for part in parts]
    assert counts == [{EPOCHS * ITERATIONS}, {2 * EPOCHS * ITERATIONS - 1}, {EPOCHS * ITERATIONS}]


def test_resumed_run_equals_an_unbroken_one(tmp_path):
    """Checkpoints hold no gradients, but parameters with momentum move from the first step on."""
    whole = make(as_dict)
    trainer = train(AlternatingTrainer, *whole[:2], whole[3])
    embedder, metric_loss, _, images = make(as_dict)
    resumed = train(AlternatingTrainer, embedder, metric_loss, images, epochs=1)
    parts = {"embedder": embedder, "loss": metric_loss, **resumed.optimizers}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "run.pt")
    embedder, metric_loss, _, images = make(as_dict)
    optimizers = make_optimizers(embedder, metric_loss)
    states = torch.load(tmp_path / "run.pt", weights_only=True)
    for name, part in {"embedder": embedder, "loss": metric_loss, **optimizers}.items():
        part.load_state_dict(states[name])
    train(AlternatingTrainer, embedder, metric_loss, images, optimizers, first=2)
    for part, expected in ((embedder, whole[0]), (metric_loss, whole[1])):
        state = expected.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
    assert trainer.epoch == EPOCHS


@pytest.mark.parametrize("trainer_class", [AlternatingTrainer])
def test_no_loss_has_a_generator(trainer_class):
    embedder, _, _, images = make(as_list)
    plain = losses.MultipleLosses([losses.ContrastiveLoss(), losses.ProxyAnchorLoss(3, 8)])
    with pytest.raises(TypeError, match=r"must be a HardNegativeGenerationLoss.*or contain one, got MultipleLosses"):
        train(trainer_class, embedder, plain, images)

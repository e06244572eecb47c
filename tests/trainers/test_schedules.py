"""Both training schedules equal a few steps of a tiny model, written out by hand."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from helpers import oracle
from pytorch_metric_learning import losses
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.utils.data import SequentialSampler, TensorDataset

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import interpolation_generator as module
from pml_gca.generators.base_generator import BaseGenerator, SyntheticNegatives
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer

LABELS = [0, 1, 2, 0, 1, 2, 2]
RATES = {"embedder": 3e-3, "propagation": 2e-3, "auxiliary": 1e-3}
DECAY, CLIP, EPOCHS, ITERATIONS, BETA = 0.1, 0.02, 3, 2, 20.0


def make_models():
    torch.manual_seed(0)
    models = {"trunk": nn.Linear(5, 6).double(), "embedder": nn.Linear(6, 8).double()}
    generator = GlobalCorrelationGenerator(4, 8, num_layers=2, num_heads=2, dropout=0.0, alpha=0.5).double()
    return models, generator, torch.randn(len(LABELS), 5, dtype=torch.float64)


def train(trainer_class, models, generator, images, **kwargs):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, beta=BETA, level_momentum=None)
    optimizers = {
        f"{name}_optimizer": torch.optim.AdamW(model.parameters(), lr=RATES["embedder"], weight_decay=DECAY)
        for name, model in models.items()
    }
    groups = loss.parameter_groups(RATES["propagation"], classifier_lr=RATES["auxiliary"])
    optimizers["metric_loss_optimizer"] = torch.optim.AdamW(groups, weight_decay=DECAY)
    data = TensorDataset(images, torch.tensor(LABELS))
    modules = {**models, "metric_loss": loss}
    trainer = trainer_class(
        models=models,
        optimizers=optimizers,
        loss_funcs={"metric_loss": loss},
        gradient_clippers={
            f"{name}_grad_clipper": partial(clip_grad_value_, list(m.parameters()), CLIP) for name, m in modules.items()
        },
        dataset=data,
        sampler=SequentialSampler(data),
        batch_size=len(LABELS),
        iterations_per_epoch=ITERATIONS,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        **kwargs,
    )
    trainer.train(num_epochs=EPOCHS)
    return trainer, loss


class AdamW:
    """AdamW for single tensors; skips one without gradient, unless it had one before and `keep_zeros` is set."""

    def __init__(self):
        self.state = {}

    @torch.no_grad()
    def step(self, parameters, gradients, rate, keep_zeros=False):
        for p, g in zip(parameters, gradients, strict=True):
            if g is None and not (keep_zeros and p in self.state):
                continue
            g = torch.zeros_like(p) if g is None else g
            g = g.clamp(-CLIP, CLIP)
            t, m, v = self.state.get(p, (0, 0.0, 0.0))
            t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.state[p] = t, m, v
            p *= 1 - rate * DECAY
            p -= rate * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)


def contrastive(z, negatives):
    """Contrastive loss: mean positive distance, and mean shortfall of real or given negatives to a margin of 1."""
    unit = [row / torch.sqrt((row**2).sum()) for row in z]
    rows = range(len(LABELS))
    positives = [oracle.distance(unit[i], unit[j]) for i in rows for j in rows if i != j and LABELS[i] == LABELS[j]]
    if negatives is None:
        negatives = [(i, None, z[j]) for i in rows for j in rows if LABELS[i] != LABELS[j]]
    lacking = [1 - oracle.distance(unit[i], row / torch.sqrt((row**2).sum())) for i, _, row in negatives]
    lacking = [value for value in lacking if value > 0]
    return oracle.mean(positives) + oracle.mean(lacking)


def expected_levels_after_training(models, generator, images, draws, alternating):
    """Step the parameters of `models` and `generator` in-place, without running their code; return the levels."""
    embedder = [p for model in models.values() for p in model.parameters()]
    propagation, auxiliary = (list(m.parameters()) for m in (generator.propagation, generator.objective.classifier))
    adamw = AdamW()
    metric_level = generator_level = math.inf
    for _ in range(EPOCHS):
        seen_metric, seen_generator = [], []
        for _ in range(ITERATIONS):
            rows = [oracle.linear(models["embedder"], oracle.linear(models["trunk"], image)) for image in images]
            z = torch.stack(rows)
            terms = oracle.objectives(generator, z, LABELS, draws.pop(0), metric_level)
            metric = contrastive(z, None)
            synthetic = (1 - math.exp(-BETA / generator_level)) * contrastive(z, terms.negatives)
            for_embedder = metric + synthetic + terms.node_classification
            for_propagation = terms.node_classification + (0 if alternating else terms.generator)
            grad = partial(torch.autograd.grad, retain_graph=True, allow_unused=True)
            gradients = grad(for_embedder, embedder), grad(for_propagation, propagation)
            adamw.step(auxiliary, grad(terms.auxiliary, auxiliary), RATES["auxiliary"])
            adamw.step(embedder, gradients[0], RATES["embedder"])
            adamw.step(propagation, gradients[1], RATES["propagation"], keep_zeros=alternating)
            if alternating:
                terms = oracle.objectives(generator, z.detach(), LABELS, draws.pop(0), metric_level)
                adamw.step(propagation, grad(terms.generator, propagation), RATES["propagation"], keep_zeros=True)
            seen_metric.append(metric.item())
            seen_generator.append(terms.generator.item())
        metric_level, generator_level = oracle.mean(seen_metric), oracle.mean(seen_generator)
    return metric_level, generator_level


@pytest.mark.parametrize("trainer_class", [AlternatingTrainer, AutocastTrainer])
def test_schedules_step_as_written_out_by_hand(trainer_class, monkeypatch):
    models, generator, images = make_models()
    expected_models, expected_generator = copy.deepcopy(models), copy.deepcopy(generator)
    draws, class_weights = [], module.class_weights
    monkeypatch.setattr(module, "class_weights", lambda *a: (draws.append(a[-1]), class_weights(*a))[1])
    _, loss = train(trainer_class, models, generator, images)

    alternating = trainer_class is AlternatingTrainer
    assert len(draws) == EPOCHS * ITERATIONS * (2 if alternating else 1)
    levels = expected_levels_after_training(expected_models, expected_generator, images, draws, alternating)
    assert (loss.metric_level.item(), loss.generator_level.item()) == pytest.approx(levels, rel=1e-6)
    pairs = [(models[name], expected_models[name]) for name in models] + [(generator, expected_generator)]
    for ours, theirs in pairs:
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_the_second_step_moves_the_propagation_alone():
    """J_gen does not reach the node classifier; it moves by momentum."""
    states = []

    class Watched(AlternatingTrainer):
        def step_generator(self, calls):
            states.append(state_of(self))
            super().step_generator(calls)
            states.append(state_of(self))

    def state_of(trainer):
        parts = nn.ModuleDict({**trainer.models, "metric_loss": trainer.loss_funcs["metric_loss"]})
        return {name: p.detach().clone() for name, p in parts.named_parameters()}

    train(Watched, *make_models())
    assert len(states) == 2 * EPOCHS * ITERATIONS
    for before, after in zip(states[::2], states[1::2], strict=True):
        moved = {name for name, p in before.items() if not torch.equal(p, after[name])}
        assert moved == {name for name in before if name.startswith("metric_loss.generator.propagation.")}


def test_loss_inside_a_wrapper_gets_epochs_and_both_steps():
    class Wrapper(nn.Module):  # as PML's DistributedLossWrapper
        def __init__(self, loss):
            super().__init__()
            self.loss = loss

        def forward(self, *args):
            return self.loss(*args)

    models, generator, images = make_models()
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, level_momentum=None)
    data = TensorDataset(images, torch.tensor(LABELS))
    AlternatingTrainer(
        models=models,
        optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameter_groups(lr=1e-3))},
        loss_funcs={"metric_loss": Wrapper(loss)},
        dataset=data,
        batch_size=len(LABELS),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
    ).train()
    assert torch.isfinite(loss.metric_level)
    assert torch.isfinite(loss.generator_level)


def test_records_of_both_steps():
    models, generator, images = make_models()
    seen = []

    def look(trainer):
        loss = trainer.loss_funcs["metric_loss"]
        seen.append((loss.metric_loss, loss.generator_loss, loss.generator, trainer.losses["total_loss"].item()))

    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, level_momentum=None, collect_stats=True)
    data = TensorDataset(images, torch.tensor(LABELS))
    AlternatingTrainer(
        models=models,
        optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameter_groups(lr=1e-3))},
        loss_funcs={"metric_loss": loss},
        dataset=data,
        sampler=SequentialSampler(data),
        batch_size=len(LABELS),
        data_device=torch.device("cpu"),
        dataloader_num_workers=0,
        end_of_iteration_hook=look,
    ).train()
    ((metric, of_generator, generator, total),) = seen
    assert metric > 0
    parts = (
        generator.node_classification_loss,
        generator.generation_loss,
        10 * generator.auxiliary_classification_loss,
    )
    assert min(parts) > 0
    assert of_generator == pytest.approx(sum(parts))
    assert total == pytest.approx(metric + of_generator)  # the weight of the synthetic loss is still 0


def test_phase_ends_with_its_context_even_after_an_error():
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator(4, 8))
    z, y = torch.randn(6, 8, requires_grad=True), torch.arange(6) % 3
    with loss.phase("generation"), pytest.raises(ValueError, match="finite"):
        loss(z * torch.nan, y)
    assert torch.autograd.grad(loss(z, y), z)[0].any()
    with pytest.raises(ValueError, match="one of all, embedding, generation, got 'both'"), loss.phase("both"):
        pass


class NamedTerms(BaseGenerator):
    """Real negatives, and terms of its own beside `generation_loss`."""

    TERMS = ("reconstruction_loss", "generation_loss", "generation_loss_of_mine", "Consistency")
    has_objective = True

    def __init__(self):
        super().__init__(4, 8)
        self.weights = nn.Parameter(torch.tensor([1.0, 10.0, 100.0, 1000.0]))

    def generate(self, batch, metric_level):
        anchors, negatives = (batch.anchor_labels[:, None] != batch.labels).nonzero(as_tuple=True)
        terms = dict(zip(self.TERMS, self.weights.unbind(), strict=False))
        return SyntheticNegatives(batch.embeddings[negatives], batch.labels[negatives], anchors, terms)


@pytest.mark.parametrize(
    ("phase", "value", "trained"),
    [("all", 1111, [1, 1, 1, 1]), ("embedding", 1101, [1, 0, 1, 1]), ("generation", 10, [0, 1, 0, 0])],
)
def test_only_generation_loss_belongs_to_the_second_step(phase, value, trained):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), NamedTerms(), collect_stats=True)
    with loss.phase(phase):
        loss(torch.randn(6, 8, requires_grad=True), torch.arange(6) % 3).backward()
    assert loss.generator_loss == value
    assert loss.generator.weights.grad.tolist() == trained
    assert loss.generator(torch.randn(6, 8), torch.arange(6) % 3).objectives.keys() == set(NamedTerms.TERMS)


class WithoutItsLoss(NamedTerms):
    TERMS = NamedTerms.TERMS[:1]


class CountsFully(WithoutItsLoss):
    has_objective = False


@pytest.mark.parametrize("trainer_class", [AlternatingTrainer, AutocastTrainer])
@pytest.mark.parametrize("generator_class", [NamedTerms, WithoutItsLoss, CountsFully])
def test_missing_generation_loss_warns_once(trainer_class, generator_class):
    models, *_, images = make_models()
    generator = generator_class().double()
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, collect_stats=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_class(
            models=models,
            optimizers={"metric_loss_optimizer": torch.optim.AdamW(loss.parameters())},
            loss_funcs={"metric_loss": loss},
            dataset=TensorDataset(images, torch.tensor(LABELS)),
            batch_size=len(LABELS),
            dataloader_num_workers=0,
            data_device=torch.device("cpu"),
        ).train(num_epochs=3)
    told = [str(w.message)[:70] for w in caught if "objective" in str(w.message)]
    is_silent = generator_class is not WithoutItsLoss
    assert told == ([] if is_silent else ["WithoutItsLoss.has_objective is True, but it returns no objective 'gen"])
    assert (loss.synthetic_weight > 0) == is_silent


@pytest.mark.parametrize("y", [[0, 0, 0, 0], [0, 1, 2, 3], [1], []])
def test_degenerate_batches_in_both_phases(y):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), GlobalCorrelationGenerator(4, 8))
    for phase, requires_grad in (("embedding", True), ("generation", False)):
        with loss.phase(phase):
            total = loss(torch.randn(len(y), 8, requires_grad=requires_grad), torch.tensor(y, dtype=torch.long))
        total.backward()
        assert torch.isfinite(total)


def test_autocast_covers_forward_passes():
    models, generator, images = make_models()
    models, generator = nn.ModuleDict(models).float(), generator.float()
    dtypes = []
    models["embedder"].register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    of_graph = []
    generator.propagation.node_classifier.register_forward_hook(lambda *args: of_graph.append(args[-1].dtype))
    train(AlternatingTrainer, dict(models), generator, images.float(), autocast_dtype=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
    assert of_graph == [torch.bfloat16] * (2 * EPOCHS * ITERATIONS)
    assert all(torch.isfinite(p).all() for p in [*models.parameters(), *generator.parameters()])


def test_bad_input():
    models, generator, images = make_models()
    with pytest.raises(ValueError, match=r"autocast_dtype must be torch.bfloat16 or None, got torch.float16"):
        train(AlternatingTrainer, models, generator, images, autocast_dtype=torch.float16)
    data = TensorDataset(images, torch.tensor(LABELS))
    common = {"models": models, "batch_size": 7, "dataset": data, "optimizers": {}}
    with pytest.raises(TypeError, match=r"must be a HardNegativeGenerationLoss.*got ContrastiveLoss"):
        AlternatingTrainer(**common, loss_funcs={"metric_loss": losses.ContrastiveLoss()})
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator)
    for held in (loss, losses.MultipleLosses([losses.ContrastiveLoss(), loss])):
        with pytest.raises(ValueError, match=r"must hold 'metric_loss_optimizer'.*found none"):
            AlternatingTrainer(**common, loss_funcs={"metric_loss": held})

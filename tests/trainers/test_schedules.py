"""Both training schedules equal a few steps of a tiny model, written out by hand."""

import copy
import math
from functools import partial

import pytest
import torch
from helpers import oracle
from helpers.scheduled_training import BETA, CLIP, DECAY, EPOCHS, ITERATIONS, LABELS, RATES, make_models, train
from torch import nn

from pml_gca.generators import interpolation_generator as module
from pml_gca.trainers import AlternatingTrainer, AutocastTrainer


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

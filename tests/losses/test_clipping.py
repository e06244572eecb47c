"""Gradient clipping of the generator, its classifier and the wrapped loss, each on its own."""

import math

import pytest
import torch
from helpers.compared import CLASSIFIED, GENERATORS
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, generator_of
from pytorch_metric_learning import losses
from torch import nn

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import ConstantGenerator

GROUPS = {
    "GCA-HNG": (generator_of, {"generator.propagation", "generator.objective.classifier", "loss"}),
    "reembedded, classified": (
        CLASSIFIED["hardness-aware, reembedded, classified"],
        {
            "generator.generator.network",
            "generator.generator.auxiliary_classifier",
            "generator.propagation",
            "loss",
        },
    ),
    "hardest, classified": (CLASSIFIED["hardest, classified"], {"generator.propagation", "loss"}),
    "hardest": (GENERATORS["hardest"], {"loss"}),
}


def norm_of(gradients):
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def loss_of(make):
    return HardNegativeGenerationLoss(losses.ProxyAnchorLoss(15, SIZE), make())


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e9])
def test_each_group_is_clipped_on_its_own(name, max_norm, z):
    make, parts = GROUPS[name]
    loss, network = loss_of(make), nn.Linear(SIZE, SIZE)
    loss(network(z), LABELS).backward()
    before = {n: p.grad.clone() for n, p in (*loss.named_parameters(), *network.named_parameters("network"))}
    norms = loss.clip_grad_norm_(max_norm)
    assert set(norms) == parts
    clipped = 0
    for part, norm in norms.items():
        own = {n: p.grad for n, p in loss.named_parameters() if n.startswith(f"{part}.")}
        expected = norm_of(before[n] for n in own)
        assert norm.item() == pytest.approx(expected, rel=1e-5)
        factor = min(1.0, max_norm / expected)
        clipped += factor < 1
        for n, gradient in own.items():
            torch.testing.assert_close(gradient, before.pop(n) * factor, rtol=1e-4, atol=0)
    assert clipped == {0.01: len(norms), 1e9: 0}.get(max_norm, clipped)
    for n, parameter in network.named_parameters("network"):
        assert torch.equal(parameter.grad, before.pop(n))
    assert before == {}  # every parameter of the loss was in a group


def test_nothing_to_clip(z):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), ConstantGenerator(NUM_CLASSES, SIZE))
    assert loss.clip_grad_norm_(1.0) == {}
    learns = loss_of(generator_of)
    assert {float(norm) for norm in learns.clip_grad_norm_(1.0).values()} == {0.0}  # before the first backward
    learns.generator.requires_grad_(False)
    learns(z, LABELS).backward()
    norms = learns.clip_grad_norm_(1.0)
    assert norms["generator.propagation"] == 0
    assert norms["loss"] > 0


def test_two_groups_of_one_module_get_two_names():
    class InTwoGroups(ConstantGenerator):
        def __init__(self):
            super().__init__(NUM_CLASSES, SIZE)
            self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

        def parameter_groups(self, lr, *, classifier_lr=1e-3):
            return [{"params": [self.scale], "lr": lr}, {"params": [], "lr": lr}, {"params": [self.shift], "lr": lr}]

    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), InTwoGroups())
    assert list(loss.clip_grad_norm_(1.0)) == ["generator", "generator_1"]


@pytest.mark.parametrize("max_norm", [0, -1.0, math.inf, math.nan, "1", None, True])
def test_bad_norms_leave_the_gradients(max_norm, z):
    loss = loss_of(generator_of)
    loss(z, LABELS).backward()
    before = [p.grad.clone() for p in loss.parameters()]
    with pytest.raises((TypeError, ValueError), match=r"^max_norm must be"):
        loss.clip_grad_norm_(max_norm)
    assert all(torch.equal(p.grad, g) for p, g in zip(loss.parameters(), before, strict=True))

"""Comparison with a whole training run of the authors' own trainer (float64, dropout 0, torch 1.8.1).

Their code was switched to our documented differences: J_soft and J_sim average over negatives, the L2 term of J_syn is
on anchors, gradients of the auxiliary classifier are clipped, levels are infinite in the first epoch, nothing is added
inside norms. Of the first epoch, a warm-up, the file holds the image model and the auxiliary classifier alone.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.strategies import labels
from hypothesis import given
from torch import nn
from torch.utils.data import TensorDataset

from pml_gca.generators import interpolation_generator as module
from pml_gca.paper import Options, PublishedNPairsLoss, recipes
from pml_gca.paper.backbones import set_warm_up
from pml_gca.paper.published_names import published_names
from pml_gca.paper.training_setup import build_training_setup

FILE = Path(__file__).parents[1] / "data" / "training" / "trajectory.npz"
# Relative to how far the run has moved a tensor.
GENERATOR = 1e-11
IMAGE_MODEL = 1e-9  # statistics of its batch normalisation follow a bias that moves by rounding
ROUNDING = 1e-5  # what moves less has a gradient of rounding alone: shifts before a norm, keys' of a softmax over two


def make_backbone(meta):
    channels, features = meta.trunk_channels, meta.trunk_features
    backbone = nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, features, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    backbone.num_features = features
    return backbone


def make_recipe(meta):
    same = ("embedding_size", "num_layers", "num_heads", "alpha", "beta", "epochs", "warmup_epochs", "lr_decay_epochs")
    same += ("classification_weight", "similarity_weight", "diversity_weight", "generator_lr", "gradient_clip")
    same += ("classes_per_batch", "samples_per_class", "classifier_lr")
    return recipes.replace(
        recipes.RESNET50_CUB, frozen=None, embedder_lr=meta.lr, **{name: getattr(meta, name) for name in same}
    )


class Run:
    """The protocol's models and trainer, with the parameters, batches and draws of the file."""

    def __init__(self, monkeypatch):
        with np.load(FILE) as file:
            data = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
        self.data = data
        self.meta = SimpleNamespace(**{k.removeprefix("meta."): v.item() for k, v in data.items() if "meta." in k})
        self.recipe = make_recipe(self.meta)
        options = Options(device="cpu")
        self.setup = build_training_setup(
            self.recipe, options, self.meta.num_classes, backbone=make_backbone(self.meta)
        )
        self.generator = self.setup.generator
        for dropout in (m for m in self.generator.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        names = {ours: theirs for ours, theirs in published_names(self.meta.num_layers).items() if "num_b" not in ours}
        self.modules = {  # with our and their names
            "trunk": (self.setup.models["trunk"], "feature_extractor.backbone.{}", None),
            "embedder": (self.setup.models["embedder"], "feature_extractor.fc.{}", None),
            "generator": (self.generator, "{}", names),
        }
        for part in (*self.setup.models.values(), *self.setup.loss_funcs.values()):
            part.double()
        for ours, value in self.state().items():
            value.copy_(data[f"init.{ours}"])
        self.trainer = self.setup.trainer(
            self.recipe,
            options,
            dataset=TensorDataset(data["images"], data["labels"]),
            sampler=data["batches"].flatten().tolist(),
            iterations_per_epoch=self.meta.iterations_per_epoch,
        )
        draws, class_weights = iter(data["draws"]), module.class_weights
        monkeypatch.setattr(
            module, "class_weights", lambda merging, z, plan, _: class_weights(merging, z, plan, self.expand(draws))
        )
        self.batches = iter(data["batches"].flatten(0, 1).repeat_interleave(2, dim=0))

    def state(self):
        """Parameters and running values that the file has, under its names."""
        found = {}
        for part, pattern, names in self.modules.values():
            state = {k: v for k, v in part.state_dict().items() if not k.endswith("num_batches_tracked")}
            found |= {pattern.format(names[ours] if names else ours): value for ours, value in state.items()}
        return found

    def expand(self, draws):
        """(M, M) draws, by the rank of a sample in its class, as (B, B)."""
        labels = self.data["labels"][next(self.batches)]
        rank = ((labels[:, None] == labels).tril(-1)).sum(dim=1)
        return next(draws)[rank][:, rank]

    def train(self, epoch):
        set_warm_up(self.setup.models["trunk"], epoch <= self.recipe.warmup_epochs)
        self.trainer.sampler = self.data["batches"][epoch - 1].flatten().tolist()
        self.trainer.train(start_epoch=epoch, num_epochs=epoch)


def test_a_training_run_of_the_authors(monkeypatch):
    run = Run(monkeypatch)
    before = {name: value.clone() for name, value in run.state().items()}
    loss, levels, compared = run.setup.loss_funcs["metric_loss"], [], 0
    for epoch in (1, 2):
        run.train(epoch)
        levels += [loss.metric_level.item(), loss.generator_level.item()]
        state = run.state()
        for name in (name for name in state if f"epoch{epoch}.{name}" in run.data):
            expected = run.data[f"epoch{epoch}.{name}"]
            moved, difference = (expected - before[name]).norm(), (state[name] - expected).norm()
            if 0 < moved < ROUNDING:
                assert (state[name] - before[name]).norm() < ROUNDING, name
            else:
                tolerance = IMAGE_MODEL if name.startswith("feature_extractor.") else GENERATOR
                assert difference <= tolerance * moved, (epoch, name, difference, moved)
                compared += 1
    assert compared > 100
    assert levels == pytest.approx(run.data["levels"].tolist(), rel=GENERATOR)


def expected(z, y, samples_per_class):
    """The loss by loops: the first sample of each class against its others in turn and the m-th of other classes."""
    members = [[i for i, label in enumerate(y) if label == c] for c in sorted(set(y))]
    values = []
    for m in range(1, max(map(len, members))):
        deep = [rows for rows in members if len(rows) > m]
        for rows in deep:
            scores = torch.stack([z[rows[0]] @ z[others[m]] for others in deep])
            values.append(scores.logsumexp(0) - z[rows[0]] @ z[rows[m]])
    penalty = 0.25 * 3e-3 * samples_per_class * (z**2).sum(dim=1).mean()
    return (sum(values) / len(values) if values else 0) + penalty


@given(y=labels(max_classes=5, max_samples=4))
def test_any_composition(y):
    z = torch.randn(len(y), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = PublishedNPairsLoss(samples_per_class=3)
    value = loss(z, y)
    torch.testing.assert_close(value, expected(z, y.tolist(), 3))
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], torch.autograd.grad(expected(z, y.tolist(), 3), z)[0])


def test_empty_batches_and_given_pairs():
    loss = PublishedNPairsLoss(samples_per_class=2)
    z = torch.randn(0, 4, requires_grad=True)
    loss(z, torch.zeros(0, dtype=torch.long)).backward()
    z = torch.randn(4, 4)
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    assert loss(z, torch.tensor([0, 0, 1, 1]), pairs).item() == pytest.approx(
        0.25 * 3e-3 * 2 * (z**2).sum(dim=1).mean().item()
    )  # one pair leaves nothing to tell it from

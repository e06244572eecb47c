"""A regularizer counts once, whether the wrapped loss or the wrapper has it."""

import math

import pytest
import torch
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, generator_of, make_loss
from pytorch_metric_learning import losses, regularizers
from torch import nn

from pml_gca import HardNegativeGenerationLoss
from pml_gca.losses import synthetic_loss
from pml_gca.losses.families import labelled_synthetic_loss
from pml_gca.losses.loss_wrapper import without_regularizers
from pml_gca.paper import PublishedNPairsLoss

EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Weights(regularizers.BaseRegularizer):
    """The sum of all weights: the value shows how often it counts."""

    def compute_loss(self, x):
        return {"loss": {"losses": x.sum(), "indices": None, "reduction_type": "already_reduced"}}


def lp():
    return {"embedding_regularizer": regularizers.LpRegularizer(power=2), "embedding_reg_weight": 40.0}


REGULARIZED = {
    "contrastive": lambda **kwargs: losses.ContrastiveLoss(**kwargs),
    "n-pairs": lambda **kwargs: losses.NPairsLoss(**kwargs),
    "nca": lambda **kwargs: losses.NCALoss(**kwargs),
    "angular": lambda **kwargs: losses.AngularLoss(**kwargs),
    "tcm": lambda **kwargs: losses.ThresholdConsistentMarginLoss(**kwargs),
    "triplet": lambda **kwargs: losses.TripletMarginLoss(**kwargs),
    "proxy anchor": lambda **kwargs: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE, **kwargs),
    "arcface": lambda **kwargs: losses.ArcFaceLoss(NUM_CLASSES, SIZE, **kwargs),
    "multiple": lambda **kwargs: losses.MultipleLosses([losses.ContrastiveLoss(**kwargs)]),
    "nested": lambda **kwargs: losses.MultipleLosses({"a": losses.MultipleLosses([losses.NPairsLoss(**kwargs)])}),
}


def values_of(make, z, own=None, **kwargs):
    """Return value and gradient in training and evaluation, with fixed draws and a weight of synthetic negatives."""
    torch.manual_seed(3)
    loss = HardNegativeGenerationLoss(make(**kwargs), generator_of(), **(own or {})).double()
    loss.levels.generator.value.fill_(10.0)
    found = []
    for training in (True, False):
        torch.manual_seed(4)
        value = loss.train(training)(z, LABELS)
        found.append((value, *torch.autograd.grad(value, z)))
    return found


@pytest.mark.parametrize("owner", ["wrapped", "wrapper"])
@pytest.mark.parametrize("name", sorted(REGULARIZED))
def test_an_embedding_regularizer_counts_once_everywhere(name, owner, z):
    z = z.detach().double().requires_grad_()
    plain = values_of(REGULARIZED[name], z)
    kwargs = lp() if owner == "wrapped" else {"own": lp()}
    regularized = values_of(REGULARIZED[name], z, **kwargs)
    penalty = 40 * z.square().sum(dim=1).mean()
    expected = (penalty, *torch.autograd.grad(penalty, z))
    for with_it, without in zip(regularized, plain, strict=True):
        for a, b, once in zip(with_it, without, expected, strict=True):
            torch.testing.assert_close(a - b, once, **EXACT)


@pytest.mark.parametrize("name", ["arcface", "proxy anchor"])
def test_a_weight_regularizer_counts_once(name, z):
    z = z.detach().double().requires_grad_()
    plain = values_of(REGULARIZED[name], z)
    regularized = values_of(REGULARIZED[name], z, weight_regularizer=Weights(), weight_reg_weight=7.0)
    torch.manual_seed(3)
    weights = REGULARIZED[name]()
    total = sum(p.detach().double().sum() for p in weights.parameters())
    for with_it, without in zip(regularized, plain, strict=True):
        torch.testing.assert_close(with_it[0] - without[0], 7 * total, rtol=1e-6, atol=1e-6)


def test_regularizer_set_later_counts_once(z):
    for wrapped in (losses.ContrastiveLoss(), losses.MultipleLosses([losses.ContrastiveLoss()])):
        loss = make_loss(wrapped).eval()
        before = loss(z, LABELS)
        loss.embedding_regularizer = regularizers.LpRegularizer()
        torch.testing.assert_close(loss(z, LABELS) - before, z.norm(dim=1).mean())


def test_second_step_has_no_regularizer(z):
    loss = make_loss(**lp(), collect_stats=True)
    with loss.phase("generation"):
        value = loss(z.detach(), LABELS)
    assert value.item() == pytest.approx(loss.generator_loss, rel=1e-6)


@pytest.mark.parametrize("labels", [[], [4], [0, 1, 2, 3]])
@pytest.mark.parametrize("owner", ["wrapped", "wrapper"])
def test_regularizer_counts_without_pairs_but_leaves_the_level(owner, labels):
    """It counts, but does not show how far training is."""
    z = torch.randn(len(labels), SIZE, requires_grad=True)
    loss = make_loss(losses.NPairsLoss(**(lp() if owner == "wrapped" else {})), **(lp() if owner == "wrapper" else {}))
    loss.levels.generator.value.fill_(10.0)
    plain = make_loss(losses.NPairsLoss())
    value = loss(z, torch.tensor(labels, dtype=torch.long))
    penalty = 40 * z.square().sum(dim=1).mean() if labels else 0.0
    torch.testing.assert_close(value, plain(z, torch.tensor(labels, dtype=torch.long)) + penalty)
    assert loss.metric_level == math.inf
    value.backward()
    assert z.grad.isfinite().all()


def test_regularizers_return_after_an_error():
    loss = losses.MultipleLosses({"a": losses.ArcFaceLoss(3, 4, weight_regularizer=Weights(), **lp())})
    names, found = [name for name, _ in loss.named_modules()], vars(loss.losses["a"])["_modules"].copy()
    with pytest.raises(KeyError), without_regularizers(loss):
        raise {}[loss.losses["a"].embedding_regularizer is None]
    assert [name for name, _ in loss.named_modules()] == names
    assert loss.losses["a"]._modules == found


class CallsItsRegularizer(nn.Module):
    """A loss of another library: its `embedding_regularizer` may mean something else."""

    def __init__(self):
        super().__init__()
        self.embedding_regularizer = nn.Identity()

    def forward(self, embeddings, labels):
        return losses.ContrastiveLoss()(self.embedding_regularizer(embeddings), labels)


def test_only_pml_losses_lose_their_regularizers(z):
    synthetic_loss.register(CallsItsRegularizer, labelled_synthetic_loss)
    loss = make_loss(CallsItsRegularizer(), collect_stats=True)
    loss.levels.generator.observe(torch.tensor(1.0))
    loss(z, LABELS)
    assert loss.metric_loss == pytest.approx(losses.ContrastiveLoss()(z, LABELS).item())
    assert loss.synthetic_loss > 0


def test_the_published_penalty_is_part_of_the_published_loss(z):
    """It applies to the real and the synthetic batch, as in the authors' code."""
    loss = make_loss(PublishedNPairsLoss(3), collect_stats=True)
    plain = PublishedNPairsLoss(3)
    plain.embedding_regularizer = None
    without = make_loss(plain, collect_stats=True)
    for each in (loss, without):
        each.levels.generator.value.fill_(10.0)
        torch.manual_seed(4)
        each(z, LABELS)
    penalty = 0.25 * 3e-3 * 3 * z.square().sum(dim=1).mean().item()
    assert loss.metric_loss - without.metric_loss == pytest.approx(penalty, rel=1e-3)
    assert loss.synthetic_loss - without.synthetic_loss == pytest.approx(loss.synthetic_weight * penalty, rel=1e-3)

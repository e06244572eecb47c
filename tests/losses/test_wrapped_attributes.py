"""Attributes of the wrapped loss, read, set and called through the wrapper."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, make_loss
from helpers.states import assert_unchanged, copied_state
from losses.test_every_pml_loss import WORKS
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import nn

from pml_gca.losses.levels import synthetic_weight

COLLECTS_ITSELF = {"collect_stats", "training"}


@pytest.mark.parametrize("name", sorted(WORKS))
def test_every_public_attribute_of_a_loss_is_read_and_set_through_the_wrapper(name):
    wrapped, loss = WORKS[name](NUM_CLASSES), None
    of_base = {key for key, _ in inspect.getmembers(BaseMetricLossFunction)} - {"distance", "reducer"}
    loss = make_loss(wrapped)
    public = {*vars(wrapped), *wrapped._modules, *wrapped._parameters, *dir(type(wrapped))}
    public = {key for key in public if not key.startswith("_")} - of_base - COLLECTS_ITSELF
    assert name.startswith(("MultipleLosses", "P2SGrad")) or {"distance", "reducer"} <= public
    for key in sorted(public):
        expected = getattr(wrapped, key)
        found = getattr(loss, key)
        assert found is expected or found == expected, key
    for key in sorted(public & {*vars(wrapped), *wrapped._modules, *wrapped._parameters}):
        value = getattr(wrapped, key)
        other = copy.deepcopy(value)
        setattr(loss, key, other)
        assert getattr(wrapped, key) is other or getattr(wrapped, key) == other, key
        assert key not in vars(loss), key
        assert key not in loss._modules, key
        assert key not in loss._parameters, key
        setattr(loss, key, value)


@pytest.mark.parametrize("name", sorted(WORKS))
def test_wrapper_hides_no_attribute_of_a_loss(name):
    """Except names of PML's base class, and `beta`, which belongs to the wrapped loss if it has one."""
    wrapped = WORKS[name](NUM_CLASSES)
    loss = make_loss()
    own = {*vars(loss), *loss._modules, *dir(type(loss))} - set(dir(BaseMetricLossFunction))
    assert {key for key in own if not key.startswith("_") and hasattr(wrapped, key)} <= COLLECTS_ITSELF


def test_miner_can_use_the_distance_through_the_wrapper(z):
    wrapped = losses.TripletMarginLoss(distance=distances.CosineSimilarity())
    mined = [
        miners.TripletMarginMiner(margin=0.1, distance=each.distance)(z, LABELS)
        for each in (make_loss(wrapped), wrapped)
    ]
    assert len(mined[0][0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*mined, strict=True))


def test_new_distance_and_reducer_are_used(z):
    loss = make_loss(losses.TripletMarginLoss(margin=0.3), collect_stats=True)
    loss.distance, loss.margin = distances.CosineSimilarity(), 0.5
    loss.set_reducer(reducers.SumReducer())
    expected = losses.TripletMarginLoss(
        margin=0.5, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer()
    )(z, LABELS)
    loss(z, LABELS)
    assert loss.metric_loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(loss.eval()(z, LABELS), expected)


def test_new_parameters_belong_to_the_wrapped_loss():
    loss = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE))
    names, count = list(loss.state_dict()), len(list(loss.parameters()))
    proxies = nn.Parameter(torch.randn(NUM_CLASSES, SIZE))
    loss.proxies = proxies
    assert loss.loss.proxies is loss.proxies is proxies
    assert (list(loss.state_dict()), len(list(loss.parameters()))) == (names, count)
    assert any(p is proxies for group in loss.parameter_groups(lr=1.0) for p in group["params"])


def test_methods_of_classification_losses(z):
    loss = make_loss(losses.SubCenterArcFaceLoss(num_classes=NUM_CLASSES, embedding_size=SIZE))
    assert torch.equal(loss.get_logits(z), loss.loss.get_logits(z))
    assert loss.W is loss.loss.W
    assert len(loss.get_outliers(z, LABELS)) == len(loss.loss.get_outliers(z, LABELS))


@pytest.mark.parametrize("make", [losses.MarginLoss, losses.MultiSimilarityLoss])
def test_beta_belongs_to_the_wrapped_loss_if_it_has_one(make):
    loss = make_loss(make(beta=1.5), beta=30.0)
    assert (float(loss.beta), loss.synthetic_beta) == (1.5, 30.0)
    assert "synthetic_beta" in loss._record_these
    assert "beta" not in loss._record_these
    loss.beta = torch.tensor([2.0])
    assert (float(loss.loss.beta), loss.synthetic_beta) == (2.0, 30.0)
    weight = synthetic_weight(torch.tensor(10.0), loss.synthetic_beta)
    assert weight.item() == pytest.approx(1 - math.exp(-3))


def test_beta_belongs_to_the_wrapper_otherwise():
    loss = make_loss(beta=30.0)
    assert loss.beta == loss.synthetic_beta == 30.0
    loss.beta = 10.0
    assert loss.beta == loss.synthetic_beta == 10.0
    assert not hasattr(loss.loss, "beta")
    assert "beta" in loss._record_these


LATER = {
    "a reducer": (lambda loss: loss.set_reducer(reducers.DoNothingReducer()), "must reduce to a scalar"),
    "its reducer": (lambda loss: setattr(loss.loss, "reducer", reducers.DoNothingReducer()), "must reduce to a scalar"),
    "a reducer per anchor": (lambda loss: setattr(loss, "reducer", reducers.PerAnchorReducer()), "PerAnchorReducer"),
    "another loss": (lambda loss: setattr(loss, "loss", losses.FastAPLoss()), "ranks the whole batch"),
    "a loss of torch": (lambda loss: setattr(loss, "loss", nn.CrossEntropyLoss()), "CrossEntropyLoss of torch.nn"),
    "no loss": (lambda loss: setattr(loss, "loss", nn.Identity()), "synthetic_loss.register"),
}


@pytest.mark.parametrize("case", sorted(LATER))
def test_later_changes_are_checked(case, z):
    change, message = LATER[case]
    loss = make_loss(losses.NTXentLoss())
    change(loss)
    before = copied_state(loss)
    with pytest.raises((TypeError, ValueError), match=message):
        loss(z, LABELS)
    assert_unchanged(loss, before)


def test_evaluation_returns_any_value_but_a_regularizer_needs_a_scalar(z):
    loss, own = make_loss().eval(), make_loss(embedding_regularizer=regularizers.LpRegularizer()).eval()
    for each in (loss, own):
        each.reducer = reducers.DoNothingReducer()
    assert loss(z, LABELS).keys() == loss.loss(z, LABELS).keys()
    with pytest.raises(TypeError, match="must return a scalar tensor, got dict"):
        own(z, LABELS)


def test_unknown_attribute_raises_attribute_error():
    with pytest.raises(AttributeError, match="proxies"):
        _ = make_loss().proxies
    with pytest.raises(AttributeError, match="distance"):
        _ = make_loss(losses.MultipleLosses([losses.ContrastiveLoss()])).distance
    loss = make_loss()
    loss.note = "mine"  # as of any module
    assert "note" in vars(loss)
    assert not hasattr(loss.loss, "note")
    assert not hasattr(loss, "_of_the_wrapped")


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_delegate_to_their_own_wrapped_loss(make_copy):
    loss = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE, margin=0.2))
    other = make_copy(loss)
    assert other.distance is other.loss.distance is not loss.distance
    other.margin = 0.7
    assert (loss.margin, other.loss.margin) == (0.2, 0.7)
    assert list(other.state_dict()) == list(loss.state_dict())


def test_hooks_and_functional_calls(z):
    loss, seen = make_loss(losses.ProxyAnchorLoss(NUM_CLASSES, SIZE)), []
    loss.register_forward_hook(lambda module, args, out: seen.append(out))
    loss.loss.register_forward_pre_hook(lambda module, args: seen.append("wrapped"))
    value = loss.eval()(z, LABELS)
    assert seen == ["wrapped", value]
    ones = {"loss.proxies": torch.ones(NUM_CLASSES, SIZE)}
    called = torch.func.functional_call(loss, ones, (z, LABELS))
    loss.proxies = nn.Parameter(ones["loss.proxies"])
    torch.testing.assert_close(called, loss(z, LABELS))

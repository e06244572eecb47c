"""The loss as a PML module: value, records, groups, copies, dtypes."""

import copy
import io
import math
import pickle

import pytest
import torch
from helpers.multi_similarity_batch import LABELS, NUM_CLASSES, NUM_NEGATIVES, SKIPPED, make_loss, proxy_anchor
from pytorch_metric_learning import distances, losses, reducers, regularizers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss


def test_the_value_is_the_sum_of_its_recorded_sub_losses(z):
    loss = make_loss(collect_stats=True)
    loss(z, LABELS)
    value = loss(z, LABELS).item()
    assert loss.synthetic_loss > 0
    assert value == pytest.approx(loss.metric_loss + loss.synthetic_loss + loss.generator_loss, rel=1e-6)
    assert loss.sub_loss_names() == ["metric_loss", "synthetic_loss", "generator_loss"]


def test_statistics_are_recorded(z):
    loss = make_loss(collect_stats=True)
    loss(z, LABELS)
    loss(z, LABELS).backward()
    of_loss = {*loss._record_these, *loss._record_these_stats}
    expected = {
        "metric_loss",
        "synthetic_loss",
        "generator_loss",
        "synthetic_weight",
        "metric_level",
        "generator_level",
    }
    assert expected <= of_loss
    generator = loss.generator
    terms = {"node_classification_loss", "generated_classification_loss", "similarity_loss", "diversity_loss"}
    counts = {"num_negatives", "num_skipped_anchors", "lambda_mean", "lambda_std", "hardness"}
    of_generator = terms | counts | {"auxiliary_classification_loss"}
    assert of_generator | {"generator_gradient_norm", "embedding_gradient_norm"} <= of_loss
    for name in of_loss:
        assert math.isfinite(float(getattr(loss, name))), name
    for name in of_generator:
        assert getattr(loss, name) == pytest.approx(getattr(generator, name)), name
    assert loss.generator_gradient_norm == generator.gradient_norm
    assert loss.embedding_gradient_norm == pytest.approx(float(z.grad.norm()))
    assert (generator.num_negatives, generator.num_skipped_anchors) == (NUM_NEGATIVES, SKIPPED)
    assert 0 < generator.lambda_mean < 1
    assert 0 < generator.lambda_std < 0.5
    assert 0 < generator.hardness < 1
    squares = sum(p.grad.double().square().sum() for p in generator.parameters())
    assert generator.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-5)
    terms = 10 * generator.similarity_loss + 10 * generator.generated_classification_loss
    terms += 0.3 * generator.diversity_loss + generator.node_classification_loss
    assert loss.generator_loss == pytest.approx(terms + 10 * generator.auxiliary_classification_loss, rel=1e-5)


def test_hardness_is_at_most_one_where_nothing_is_pulled(z):
    loss = make_loss(collect_stats=True)
    with torch.no_grad():
        last = loss.generator.propagation.edge_coefficients
        last.weight.zero_()
        last.bias.fill_(1e4)  # λ = 1, and L = ∞: synthetic negatives are mixtures of real ones
    loss(z, LABELS)
    assert loss.generator.hardness <= 1.0 + 1e-6
    assert loss.generator.lambda_mean == 1


def test_nothing_is_recorded_unless_asked(z):
    loss = make_loss(collect_stats=False)
    loss(z, LABELS)
    assert not hasattr(loss, "_record_these_stats")
    assert not hasattr(loss.generator, "num_negatives")


def test_parameter_groups_hold_every_parameter_once():
    loss = make_loss(proxy_anchor)
    groups = loss.parameter_groups(lr=0.1, classifier_lr=0.2, loss_lr=0.3)
    grouped = [p for group in groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, loss.parameters()))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(loss.loss.proxies)] == 0.3
    assert {rates[id(p)] for p in loss.generator.objective.classifier.parameters()} == {0.2}
    assert {rates[id(p)] for p in loss.generator.propagation.parameters()} == {0.1}
    assert [group["lr"] for group in loss.parameter_groups(lr=0.1)] == [0.1, 1e-3, 0.1]
    assert len(make_loss().parameter_groups(lr=0.1)) == 2


def pickled(loss):
    return pickle.loads(pickle.dumps(loss))


def saved(loss):
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled, saved])
def test_copy_continues_like_the_original_and_does_not_change_it(make_copy, z):
    loss = make_loss(proxy_anchor, dropout=0.1, collect_stats=True)
    loss(z, LABELS)
    other = make_copy(loss)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    values = []
    for each in (other, loss):
        torch.manual_seed(2)
        values.append([each(z, LABELS).item() for _ in range(3)])
        if each is other:
            assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    assert values[0] == values[1]


def test_the_same_seed_gives_the_same_loss(z):
    values = []
    for _ in range(2):
        loss = make_loss(dropout=0.1)
        torch.manual_seed(4)
        values.append([loss(z, LABELS).item() for _ in range(3)])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "reducer",
    [
        reducers.MeanReducer(),
        reducers.SumReducer(),
        reducers.AvgNonZeroReducer(),
        reducers.ThresholdReducer(low=0.1),
        reducers.ClassWeightedReducer(torch.linspace(0.1, 1, NUM_CLASSES)),
    ],
    ids=lambda reducer: type(reducer).__name__,
)
@pytest.mark.parametrize(
    "wrapped", [losses.TripletMarginLoss, losses.ContrastiveLoss, losses.NPairsLoss, losses.NCALoss]
)
def test_reducers_of_the_wrapped_loss(reducer, wrapped, z):
    loss = make_loss(lambda: wrapped(reducer=reducer), collect_stats=True)
    loss(z, LABELS)
    loss(z, LABELS).backward()
    assert loss.metric_loss == pytest.approx(loss.loss(z, LABELS).item(), rel=1e-6)
    assert loss.synthetic_loss > 0
    assert z.grad.isfinite().all()


def test_the_wrapped_losses_own_records_are_those_of_the_real_batch(z):
    loss = make_loss(
        lambda: losses.NTXentLoss(distance=distances.CosineSimilarity(collect_stats=True)), collect_stats=True
    )
    loss.loss(z, LABELS)
    norms = loss.loss.distance.initial_avg_ref_norm
    loss(z * 1, LABELS)
    assert loss.loss.distance.initial_avg_ref_norm == norms


def test_wrapper_regularizer_adds_to_the_loss(z):
    values = []
    for kwargs in ({}, {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.5}):
        loss = make_loss(**kwargs)
        torch.manual_seed(7)
        values.append(loss(z, LABELS))
    torch.testing.assert_close(values[1] - values[0], 0.5 * z.norm(dim=1).mean(), rtol=1e-4, atol=1e-5)
    assert loss.sub_loss_names()[-1] == "embedding_reg_loss"


def test_pmls_distributed_wrapper_takes_it(z):
    wrapper = DistributedLossWrapper(make_loss(), efficient=True)
    with pytest.warns(UserWarning, match="non-distributed"):
        assert wrapper(z, LABELS).isfinite()


def test_several_batches_before_one_backward(z):
    loss = make_loss(proxy_anchor)
    (loss(z, LABELS) + loss(z * 2, LABELS.flip(0)) + loss(z[:3], LABELS[:3])).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_distance_argument_is_refused():
    with pytest.raises(ValueError, match="distance belongs to the wrapped loss"):
        HardNegativeGenerationLoss(losses.NPairsLoss(), GlobalCorrelationGenerator(9, 8), distance=object())

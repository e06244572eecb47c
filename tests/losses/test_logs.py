"""What `loss.logs()` tells of the last batch."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.compared import CLASSIFIED, GENERATORS, random_rows
from helpers.contrastive_batch import LABELS, NUM_CLASSES, SIZE, generator_of, make_loss
from pytorch_metric_learning import losses, regularizers

from pml_gca import HardNegativeGenerationLoss

GRADIENTS = {"embedding_gradient_norm", "generator_gradient_norm"}
TERMS = {"node_classification_loss", "generation_loss", "auxiliary_classification_loss"}
TERMS |= {"generated_classification_loss", "similarity_loss", "diversity_loss"}
OF_EVERY_BATCH = {"metric_loss", "synthetic_loss", "synthetic_weight", "generator_loss", "metric_level"}
OF_EVERY_BATCH |= {"num_negatives", "num_skipped_anchors"}
SIMILARITIES = {"hardest_synthetic_similarity", "hardest_real_similarity"}
OF_GCA = OF_EVERY_BATCH | TERMS | SIMILARITIES | {"generator_level", "lambda_mean", "lambda_std"}


def norm_of(gradients):
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def test_a_training_batch(z):
    loss = make_loss().double()
    z = z.detach().double().requires_grad_()
    loss.levels.metric.value.fill_(2.0)
    loss.levels.generator.value.fill_(10.0)
    made = []
    generate = loss.generator.generate
    loss.generator.generate = lambda *args: made.append(generate(*args)) or made[-1]
    correlations = loss.generator.correlate(z, LABELS)
    total = loss(z, LABELS)
    before_backward = loss.logs()
    total.backward()
    found = loss.logs()
    assert set(found) == OF_GCA | GRADIENTS
    assert set(before_backward) == OF_GCA
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    (negatives,) = made
    assert found["metric_loss"] == pytest.approx(loss.loss(z, LABELS).item())
    assert found["metric_loss"] + found["synthetic_loss"] + found["generator_loss"] == pytest.approx(total.item())
    assert found["synthetic_weight"] == pytest.approx(1 - math.exp(-2))
    assert found["generator_loss"] == pytest.approx(sum(negatives.objectives.values()).item())
    assert found["generation_loss"] == pytest.approx(negatives.objectives["generation_loss"].item())
    assert found["auxiliary_classification_loss"] == pytest.approx(
        negatives.objectives["auxiliary_classification_loss"].item() / 10
    )
    assert (found["metric_level"], found["generator_level"]) == (float(loss.metric_level), float(loss.generator_level))
    assert found["lambda_mean"] == pytest.approx(float(correlations.coefficients.mean()), rel=1e-9)
    assert found["lambda_std"] == pytest.approx(float(correlations.coefficients.std()), rel=1e-9)
    assert found["num_negatives"] == len(negatives) == 21
    assert found["num_skipped_anchors"] == 1
    assert found["embedding_gradient_norm"] == pytest.approx(norm_of([z.grad]))
    assert found["generator_gradient_norm"] == pytest.approx(norm_of([p.grad for p in loss.generator.parameters()]))


def similarities_one_by_one(z, labels, negatives):
    """Return the means over anchors with negatives of the largest similarity, of synthetic and of real negatives."""
    synthetic, real = [], []
    for i, anchor in enumerate(z):
        own = [F.cosine_similarity(anchor, n, dim=0) for n, a in zip(*negatives, strict=True) if a == i]
        if own:
            synthetic.append(max(own))
            real.append(
                max(F.cosine_similarity(anchor, n, dim=0) for n, y in zip(z, labels, strict=True) if y != labels[i])
            )
    return [float(sum(values) / len(values)) for values in (synthetic, real)]


@pytest.mark.parametrize("name", GENERATORS | CLASSIFIED)
def test_hardness_and_counts_of_every_generator(name):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), (GENERATORS | CLASSIFIED)[name]()).double()
    z, labels = random_rows(10), torch.tensor([3, 7, 3, 0, 1, 3, 7, 0, 3, 7])
    made, generate = [], loss.generator.generate
    loss.generator.generate = lambda *args: made.append(generate(*args)) or made[-1]
    loss(z, labels)
    found, negatives = loss.logs(), made[0]
    expected = similarities_one_by_one(z.detach(), labels, (negatives.embeddings.detach(), negatives.anchors))
    assert [found["hardest_synthetic_similarity"], found["hardest_real_similarity"]] == pytest.approx(expected)
    assert found["num_negatives"] == len(negatives) > 0
    assert found["num_skipped_anchors"] == 1
    assert set(negatives.objectives) <= set(found)
    if name in ("hardest", "hardest, classified"):  # those are the real ones
        assert found["hardest_synthetic_similarity"] == pytest.approx(found["hardest_real_similarity"])


@pytest.mark.parametrize("labels", [[4] * 8, list(range(8))], ids=["one class", "no positives"])
def test_a_batch_without_negatives_skips_every_anchor(z, labels):
    loss = make_loss()
    loss(z, torch.tensor(labels)).backward()
    found = loss.logs()
    assert (found["num_negatives"], found["num_skipped_anchors"]) == (0, 8)
    assert not SIMILARITIES & set(found)
    assert found["synthetic_loss"] == 0


def test_anchors_without_negatives_of_a_generator_that_does_not_count_them(z):
    loss = make_loss()
    generate = loss.generator.generate

    def of_the_first_anchors(*args):
        made = generate(*args)
        kept = made.anchors < 3
        parts = {name: getattr(made, name)[kept] for name in ("embeddings", "labels", "anchors")}
        return type(made)(**parts, objectives=made.objectives)

    loss.generator.generate = of_the_first_anchors
    loss(z, LABELS)
    assert loss.logs()["num_skipped_anchors"] == 5


def test_nothing_before_the_first_batch_and_the_metric_loss_alone_in_evaluation(z):
    loss = make_loss(embedding_regularizer=regularizers.LpRegularizer())
    assert loss.logs() == {}
    assert loss.eval().logs() == {}
    loss.train()(z, LABELS)
    in_training = loss.logs()
    with torch.no_grad():
        loss(2 * z, LABELS)  # evaluation, though in training mode
    assert loss.logs() == in_training
    value = loss.eval()(3 * z, LABELS + 100)
    plain = float(losses.ContrastiveLoss()(3 * z, LABELS))
    assert loss.logs() == {"metric_loss": pytest.approx(plain)}
    assert float(value) > plain  # with the regularizer
    assert loss.train().logs() == in_training
    torch.func.grad(lambda x: loss.eval()(x, LABELS))(z.detach())
    assert loss.logs() == {"metric_loss": pytest.approx(plain)}


def test_levels_before_the_first_epoch_ends_are_left_out(z):
    loss = make_loss(level_momentum=None)
    loss(z, LABELS)
    assert not {"metric_level", "generator_level"} & set(loss.logs())
    loss.end_epoch()
    assert loss.logs()["metric_level"] == pytest.approx(loss.logs()["metric_loss"])


def test_gradients_are_those_of_the_last_batch(z):
    loss = make_loss()
    other = torch.nn.Linear(SIZE, SIZE)
    embeddings = other(z)
    embeddings.retain_grad()
    (loss(embeddings, LABELS) + embeddings.square().sum()).backward()
    assert loss.logs()["embedding_gradient_norm"] == pytest.approx(norm_of([embeddings.grad]), rel=1e-5)
    loss.zero_grad()
    assert "generator_gradient_norm" not in loss.logs()
    loss(z, LABELS)
    assert not GRADIENTS & set(loss.logs())
    loss(z.detach(), LABELS).backward()
    assert "embedding_gradient_norm" not in loss.logs()
    for _ in range(3):  # the same tensor again
        loss(z, LABELS).backward()
    assert len(z._backward_hooks) == 1


def test_the_second_step_of_an_alternating_schedule_adds_to_the_first(z):
    loss, whole = make_loss(), make_loss()
    with loss.phase("embedding"):
        loss(z, LABELS).backward()
    first = loss.logs()
    assert "generation_loss" not in first
    with loss.phase("generation"):
        loss(z.detach(), LABELS).backward()
    both = loss.logs()
    assert both["generator_loss"] == pytest.approx(first["generator_loss"] + both["generation_loss"])
    same = ("metric_loss", "synthetic_loss", "num_negatives", "embedding_gradient_norm", *SIMILARITIES)
    assert {name: both[name] for name in same} == {name: first[name] for name in same}
    torch.manual_seed(0)
    whole(z, LABELS).backward()
    assert set(both) == set(whole.logs())


def test_a_refused_batch_changes_nothing(z):
    loss = make_loss()
    loss(z, LABELS).backward()
    before = loss.logs()
    with pytest.raises(ValueError, match="labels must lie in"):
        loss(z, LABELS + NUM_CLASSES)
    assert loss.logs() == before


def test_copies_and_pickles_have_the_values_and_their_own_gradients(z):
    loss = make_loss()
    loss(z, LABELS).backward()
    found = loss.logs()
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        kept = {name: value for name, value in copied.logs().items() if name != "generator_gradient_norm"}
        assert kept == {name: found[name] for name in kept}
        copied(2 * z.detach(), LABELS)
        assert loss.logs() == found


def test_values_are_no_part_of_the_state():
    loss = make_loss()
    before = set(loss.state_dict())
    loss(torch.randn(8, SIZE), LABELS)
    assert set(loss.state_dict()) == before


@pytest.mark.parametrize("collect_stats", [True, False])
def test_pml_records_hold_the_same_values(z, collect_stats):
    loss = make_loss(collect_stats=collect_stats)
    loss(z, LABELS)
    found = loss.logs()
    assert ("hardness" in found) == collect_stats  # costs a wait
    if collect_stats:
        for name in ("metric_loss", "synthetic_loss", "generator_loss", "synthetic_weight"):
            assert getattr(loss, name) == found[name]
        assert loss.generator.lambda_mean == found["lambda_mean"]


def test_a_generator_alone_observes_its_statistics(z):
    generator = generator_of()
    generator(z, LABELS)
    assert {"num_negatives", "lambda_mean", "similarity_loss"} <= set(generator.observed)
    assert not any(value.requires_grad for value in generator.observed.values() if isinstance(value, torch.Tensor))


def test_half_precision_and_autocast(z):
    loss = make_loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(z.detach().bfloat16().requires_grad_(), LABELS).backward()
    assert set(loss.logs()) == OF_GCA | GRADIENTS
    assert all(math.isfinite(value) for value in loss.logs().values())

"""Which term of the loss reaches which parameters and inputs, each term computed on its own by the slow oracle."""

import math

import pytest
import torch
from helpers import oracle
from helpers import slow_losses as slow
from pytorch_metric_learning import losses
from torch.autograd import grad

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss, SyntheticNegatives
from pml_gca.losses import SyntheticBatch
from pml_gca.losses.levels import synthetic_weight

NUM_CLASSES, SIZE, BETA = 6, 8, 20.0
METRIC_LEVEL, GENERATOR_LEVEL = 3.0, 14.0
LABELS = torch.tensor([2, 5, 2, 0, 5, 2, 1])  # 3, 2, 1 and 1 samples: merging, a plain negative, skipped anchors


def anchored(loss):
    """J_syn of a loss over proxies: synthetic negatives are further samples."""
    return lambda batch: loss(
        torch.cat([batch.embeddings, batch.negatives.embeddings]), torch.cat([batch.labels, batch.negatives.labels])
    )


def make(name):
    torch.manual_seed(3)
    wrapped = {
        "n-pairs": losses.NPairsLoss,
        "triplet": lambda: losses.TripletMarginLoss(margin=0.3),
        "nca": losses.NCALoss,
        "nt-xent": losses.NTXentLoss,
        "proxy anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
    }[name]()
    synthetic = {
        "n-pairs": slow.n_pairs,
        "triplet": lambda batch: slow.triplet(batch, 0.3),
        "nca": slow.nca,
        "nt-xent": slow.nt_xent,
        "proxy anchor": anchored(wrapped),
    }[name]
    layers = 2 if name == "n-pairs" else 1
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=layers, num_heads=2, dropout=0.0, alpha=4.0)
    loss = HardNegativeGenerationLoss(wrapped, generator, beta=BETA).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loss.levels.metric.value.fill_(METRIC_LEVEL)
    loss.levels.generator.value.fill_(GENERATOR_LEVEL)
    return loss, synthetic


class Terms:
    """Every term as a scalar of its own; the oracle's λ is detached where a synthetic negative meets the loss."""

    def __init__(self, loss, synthetic, z):
        torch.manual_seed(4)
        draws = torch.rand(len(z), len(z), dtype=torch.float64)
        found = oracle.objectives(loss.generator, z, LABELS.tolist(), draws, METRIC_LEVEL)
        anchors, labels, rows = zip(*found.negatives, strict=True)
        negatives = SyntheticNegatives(torch.stack(rows), torch.tensor(labels), torch.tensor(anchors))
        batch = SyntheticBatch(z, LABELS, z, LABELS, negatives)
        self.metric = loss.loss(z, LABELS)
        self.synthetic = (1 - math.exp(-BETA / GENERATOR_LEVEL)) * synthetic(batch)
        self.classification = found.node_classification
        # Both as functions of a detached copy of the embeddings, as in section 3.5 of the paper.
        detached = oracle.objectives(loss.generator, z.detach(), LABELS.tolist(), draws, METRIC_LEVEL)
        self.generator, self.auxiliary = detached.generator, detached.auxiliary


def groups(loss, z):
    return {
        "embeddings": [z],
        "propagation": list(loss.generator.propagation.parameters()),
        "auxiliary": list(loss.generator.objective.classifier.parameters()),
        "wrapped": list(loss.loss.parameters()),
    }


def gradients(term, parameters):
    return grad(term, parameters, retain_graph=True, materialize_grads=True) if parameters else ()


@pytest.mark.parametrize("name", ["n-pairs", "triplet", "nca", "nt-xent", "proxy anchor"])
def test_every_gradient_is_the_sum_of_the_terms_that_may_reach_it(name):
    loss, synthetic = make(name)
    z = torch.randn(len(LABELS), SIZE, dtype=torch.float64, requires_grad=True)
    terms = Terms(loss, synthetic, z)
    torch.manual_seed(4)
    total = loss(z, LABELS)
    everything = (terms.metric, terms.synthetic, terms.classification, terms.generator, terms.auxiliary)
    torch.testing.assert_close(total, sum(everything), rtol=1e-9, atol=0)

    reaches = {
        "embeddings": terms.metric + terms.synthetic + terms.classification,
        "propagation": terms.classification + terms.generator,
        "auxiliary": terms.auxiliary,
        "wrapped": terms.metric + terms.synthetic,
    }
    for group, parameters in groups(loss, z).items():
        wanted = gradients(reaches[group], parameters)
        for ours, theirs in zip(gradients(total, parameters), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10, msg=lambda m, g=group: f"{g}: {m}")


def test_each_term_matters_in_the_test_above():
    loss, synthetic = make("proxy anchor")
    z = torch.randn(len(LABELS), SIZE, dtype=torch.float64, requires_grad=True)
    terms = Terms(loss, synthetic, z)
    table = {
        "metric": {"embeddings", "wrapped"},
        "synthetic": {"embeddings", "wrapped"},
        "classification": {"embeddings", "propagation"},
        "generator": {"propagation"},
        "auxiliary": {"auxiliary"},
    }
    for term, reached in table.items():
        found = groups(loss, z)
        large = {g for g in found if any(x.abs().max() > 1e-4 for x in gradients(getattr(terms, term), found[g]))}
        assert large == reached, term


def test_each_term_of_the_generator_trains_its_own_parameters():
    loss, _ = make("proxy anchor")
    z = torch.randn(len(LABELS), SIZE, dtype=torch.float64, requires_grad=True)
    negatives = loss.generator(z, LABELS, metric_level=METRIC_LEVEL)
    table = {
        "node_classification_loss": {"embeddings", "propagation"},
        "generation_loss": {"propagation"},
        "auxiliary_classification_loss": {"auxiliary"},
    }
    assert set(negatives.objectives) == set(table)
    for term, value in [*negatives.objectives.items(), ("negatives", negatives.embeddings.square().sum())]:
        reached = table.get(term, {"embeddings"})
        for group, parameters in groups(loss, z).items():
            found = grad(value, parameters, retain_graph=True, allow_unused=True)
            assert any(g is not None and g.any() for g in found) == (group in reached), (term, group)


@pytest.mark.parametrize(("level", "weight"), [(math.inf, 0.0), (20.0, 1 - math.exp(-1)), (1e-9, 1.0), (-1.0, 1.0)])
def test_weight_of_the_synthetic_term(level, weight):
    loss, _ = make("n-pairs")
    assert synthetic_weight(torch.tensor(level), loss.synthetic_beta).item() == pytest.approx(weight, abs=1e-7)


def test_beta_of_zero_switches_the_synthetic_term_off():
    z = torch.randn(len(LABELS), SIZE, requires_grad=True)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, classification_weight=0, similarity_weight=0)
    generator.objective.diversity_weight = 0.0
    loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator, beta=0)
    for _ in range(2):  # at the second batch G is 0, where β/G is undefined
        (gradient,) = grad(loss(z, LABELS), z)
        assert torch.isfinite(gradient).all()
    assert loss.generator_level == 0
    assert synthetic_weight(loss.generator_level, loss.synthetic_beta) == 0


def test_embeddings_without_gradient_still_train_the_generator():
    loss, _ = make("n-pairs")
    loss(torch.randn(len(LABELS), SIZE, dtype=torch.float64), LABELS).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert loss.generator.gradient_norm > 0


def test_without_autograd_there_is_a_value_and_no_graph():
    loss, _ = make("n-pairs")
    with torch.no_grad():
        value = loss(torch.randn(len(LABELS), SIZE, dtype=torch.float64), LABELS)
    assert value.isfinite()
    assert not value.requires_grad

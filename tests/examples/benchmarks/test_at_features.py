"""Synthetic negatives made of features."""

import pytest
import torch
from comparison.at_features import embed_alike, loss_at_features
from comparison.beside_the_loss import Extras
from pytorch_metric_learning import losses
from torch import nn

from pml_gca.generators import ConstantGenerator
from pml_gca.losses import NAMED_LOSSES

LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3])


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Module()
    made.head = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 6))
    nn.init.normal_(made.head[0].weight)
    nn.init.normal_(made.head[0].bias)
    return made


@pytest.fixture
def features():
    torch.manual_seed(1)
    return torch.randn(len(LABELS), 10, requires_grad=True)


def test_rows_are_embedded_as_the_batch_is(network, features):
    norm = network.head[0]
    expected = network.head(features)
    before = norm.running_mean.clone()
    torch.testing.assert_close(embed_alike(network.head, features, features), expected)
    torch.testing.assert_close(embed_alike(network.head, features[2:3], features), expected[2:3])
    (ours,) = torch.autograd.grad(embed_alike(network.head, features, features).square().sum(), features)
    (theirs,) = torch.autograd.grad(expected.square().sum(), features)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(norm.running_mean, before)


def slow_multi_similarity(embeddings, negatives, anchors, alpha=2, beta=50, base=0.5):
    unit, made = nn.functional.normalize(embeddings), nn.functional.normalize(negatives)
    values = []
    for i, label in enumerate(LABELS):
        positive = [unit[i] @ unit[j] for j in range(len(LABELS)) if j != i and LABELS[j] == label]
        negative = [unit[i] @ made[s] for s in range(len(made)) if anchors[s] == i]
        value = torch.log(1 + sum(torch.exp(-alpha * (s - base)) for s in positive)) / alpha
        values.append(value + torch.log(1 + sum(torch.exp(beta * (s - base)) for s in negative)) / beta)
    return sum(values) / len(values)


def test_the_loss_against_a_loop(network, features):
    generator = ConstantGenerator(5, 10, coefficient=0.3, alpha=0.0, merging="hardest")
    made = generator(features, LABELS)
    z, d = features, torch.cdist(features, features)
    for s, (i, label) in enumerate(zip(made.anchors, made.labels, strict=True)):
        members = (label == LABELS).nonzero()[:, 0]
        j = members[torch.cosine_similarity(z[i][None], z[members]).argmax()]
        positives = (LABELS[i] == LABELS).nonzero()[:, 0].tolist()
        near = d[i, positives[(positives.index(i) + 1) % len(positives)]]
        ratio = (near + (d[i, j] - near) * 0.3) / d[i, j] if near < d[i, j] else 1.0
        torch.testing.assert_close(made.embeddings[s], z[i] + ratio * (z[j] - z[i]))
    embeddings, rows = network.head(features), embed_alike(network.head, made.embeddings, features)
    loss = losses.MultiSimilarityLoss()
    found = loss_at_features(loss, generator, network, features, embeddings, LABELS)
    torch.testing.assert_close(found, slow_multi_similarity(embeddings, rows, made.anchors))
    proxies = NAMED_LOSSES["proxy_anchor"](5, 6)
    found = loss_at_features(proxies, generator, network, features, embeddings, LABELS)
    torch.testing.assert_close(found, proxies(torch.cat([embeddings, rows]), torch.cat([LABELS, made.labels])))


def test_regularizers_count_once(network, features):
    loss, embeddings = NAMED_LOSSES["n_pairs"](5, 6), network.head(features)
    generator = ConstantGenerator(5, 10, alpha=0.0, merging="hardest")
    found = loss_at_features(loss, generator, network, features, embeddings, LABELS)
    loss.embedding_reg_weight = 100.0
    torch.testing.assert_close(loss_at_features(loss, generator, network, features, embeddings, LABELS), found)
    assert loss.embedding_regularizer is not None


def test_it_is_added_to_the_loss(network, features):
    settings = {"embedding_size": 6, "generator_lr": 1e-3, "at_features": "constant"}
    loss, embeddings = losses.MultiSimilarityLoss(), network.head(features)
    extras = Extras(settings, 5, loss, "cpu", num_features=10)
    assert extras.needs_features
    expected = loss(embeddings, LABELS)
    expected = expected + loss_at_features(loss, extras.at_features, network, features, embeddings, LABELS)
    torch.testing.assert_close(extras.total(network, features, embeddings, LABELS), expected)
    assert extras.parameter_groups(1e-3) == []

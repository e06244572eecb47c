"""A graph over classes that steers the crossing."""

import pytest
import torch
from comparison.beside_the_loss import Extras
from comparison.class_graph import ClassGraph, LearnedCrossing, make_crossing
from comparison.crossing import Crossing, cross, pair_classes
from pytorch_metric_learning import losses
from torch import nn

LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3])


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Module()
    made.head = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 6))
    return made


def total(crossing, network):
    torch.manual_seed(0)
    features, loss = torch.randn(len(LABELS), 10), losses.MultiSimilarityLoss()
    embeddings = network.head(features)
    torch.manual_seed(1)
    value = crossing.total(loss(embeddings, LABELS), loss, network, features, embeddings, LABELS)
    return value, features, embeddings


def test_a_pair_turned_round_takes_the_other_channels():
    torch.manual_seed(0)
    graph, means = ClassGraph(10), torch.randn(4, 10)
    ends = torch.tensor([[0, 1], [2, 3], [1, 3]])
    share = graph(means, ends)
    assert share.shape == (3, 10)
    torch.testing.assert_close(graph(means, ends.flip(1)), 1 - share)
    torch.testing.assert_close(share.logit().mean(dim=1), torch.zeros(3), atol=1e-6, rtol=0)
    # Other classes of the batch have a say.
    assert (graph(torch.cat([means[:2], torch.randn(2, 10)]), ends[:1]) - share[:1]).abs().max() > 1e-5


def test_a_graph_that_knows_nothing_is_a_coin(network):
    crossing = LearnedCrossing({"crossed": 2, "mask": "told"}, 4, 10)
    nn.init.zeros_(crossing.graph.widen.weight)
    found, *_ = total(crossing, network)
    torch.testing.assert_close(found, total(Crossing({"crossed": 2}, 4), network)[0])


@pytest.mark.parametrize("mask", ["told", "adversarial"])
def test_the_graph_gets_the_gradient_of_the_mask(mask, network):
    crossing = LearnedCrossing({"crossed": 2, "mask": mask}, 4, 10)
    torch.manual_seed(3)
    share = torch.rand(6, 10, requires_grad=True)
    seen = []

    def graph(means, ends):
        seen.append(means)
        return share

    crossing.graph = graph
    found, features, embeddings = total(crossing, network)
    (gradient,) = torch.autograd.grad(found, share)
    torch.testing.assert_close(seen[0], torch.stack([features[c == LABELS].mean(dim=0) for c in (0, 1, 3)]))
    torch.manual_seed(1)
    pairs = pair_classes(LABELS, 2)
    heads = (torch.rand(6, 10) < share).float().requires_grad_()
    rows = network.head(cross(features[pairs.first], features[pairs.second], heads[pairs.pair_of]))
    loss = losses.MultiSimilarityLoss()
    together = loss(torch.cat([embeddings, rows]), torch.cat([LABELS, pairs.pair_of + 4]))
    expected = (loss(embeddings, LABELS) + together) / 2
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(expected, heads)
    assert slope.norm() > 0
    torch.testing.assert_close(gradient, slope if mask == "told" else -slope)


def test_the_graph_learns_at_the_rate_of_generators():
    settings = {"embedding_size": 6, "generator_lr": 1e-4, "crossed": 3, "mask": "told"}
    extras = Extras(settings, 4, losses.MultiSimilarityLoss(), "cpu", num_features=10)
    (group,) = extras.parameter_groups(1e-3)
    assert group["lr"] == 1e-4
    assert {id(p) for p in group["params"]} == {id(p) for p in extras.crossing.graph.parameters()}


def test_crossings_by_their_settings():
    assert make_crossing({}, 4, 10) is None
    assert type(make_crossing({"crossed": 1, "mask": "scalar"}, 4, 10)) is Crossing
    assert type(make_crossing({"crossed": 1, "mask": "adversarial"}, 4, 10)) is LearnedCrossing

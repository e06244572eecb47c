"""One classifier of two streams."""

import pytest
import torch
from comparison.beside_the_loss import Extras
from comparison.two_streams import TwoStreams
from pytorch_metric_learning import losses
from torch import nn

CLASSES, SIZE = 5, 8
LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4])


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    return torch.randn(len(LABELS), SIZE)


def standardized(rows):
    return (rows - rows.mean(dim=0)) / (rows.var(dim=0, unbiased=False) + 1e-5).sqrt()


def test_one_linear_layer_classifies_nodes_and_embeddings(embeddings):
    both = TwoStreams(CLASSES, SIZE, streams="graph")
    logits = both(embeddings, LABELS)
    assert logits.shape == (2 * len(LABELS), CLASSES)
    expected = standardized(embeddings) @ both.head.weight.t() + both.head.bias
    torch.testing.assert_close(logits[len(LABELS) :], expected)
    with torch.no_grad():
        both.head.bias[2] += 1.0
    both.graph.layers[0].edge.dropout.p = 0.0
    moved = both(embeddings, LABELS)
    both.head.bias.data[2] -= 1.0
    torch.testing.assert_close(moved - both(embeddings, LABELS), torch.eye(CLASSES)[2].expand_as(moved))


def test_controls_classify_embeddings_alone(embeddings):
    alone = TwoStreams(CLASSES, SIZE, streams="alone")
    torch.testing.assert_close(alone(embeddings, LABELS), alone.head(standardized(embeddings)))
    twice = TwoStreams(CLASSES, SIZE, streams="dropout")
    first, second = twice(embeddings, LABELS).chunk(2)
    assert not torch.allclose(first, second)
    twice.dropout.p = 0.0
    first, second = twice(embeddings, LABELS).chunk(2)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, twice.head(standardized(embeddings)))


@pytest.mark.parametrize("streams", ["graph", "dropout", "alone"])
def test_every_parameter_learns_once_and_the_graph_at_its_own_rate(streams):
    both = TwoStreams(CLASSES, SIZE, streams=streams)
    groups = both.parameter_groups(1e-3, 1e-4)
    assert [group["lr"] for group in groups] == ([1e-3, 1e-4] if streams == "graph" else [1e-3])
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in both.parameters())
    assert {id(p) for p in both.head.parameters()} <= {id(p) for p in groups[0]["params"]}


@pytest.mark.parametrize("streams", ["graph", "alone"])
def test_the_term_against_a_loop(streams, embeddings):
    settings = {"embedding_size": SIZE, "generator_lr": 1e-3, "streams": streams}
    settings |= {"label_smoothing": 0.1, "temperature": 0.2}
    loss = losses.MultiSimilarityLoss()
    extras = Extras(settings, CLASSES, loss, "cpu")
    if streams == "graph":
        for layer in extras.classifier.graph.layers:
            if layer.edge is not None:
                layer.edge.dropout.p = 0.0
    logits = extras.classifier(embeddings, LABELS) / 0.2
    total = 0.0
    for row, scores in enumerate(logits):
        target = torch.full((CLASSES,), 0.1 / CLASSES)
        target[LABELS[row % len(LABELS)]] += 0.9
        total = total - (target * nn.functional.log_softmax(scores, dim=0)).sum() / len(logits)
    torch.testing.assert_close(extras.total(None, None, embeddings, LABELS), loss(embeddings, LABELS) + total)

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from comparison.classifiers import CLASSIFIERS, GraphClassifier, MaskedGraphClassifier, OwnGradientGraphClassifier

SIZE, CLASSES = 8, 5


@pytest.fixture
def batch():
    torch.manual_seed(0)
    embeddings = torch.randn(9, SIZE, dtype=torch.float64, requires_grad=True)
    return embeddings, torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4])


def make(kind, like=None):
    torch.manual_seed(1)
    classifier = kind(CLASSES, SIZE).double().eval()
    classifier.train()
    classifier.propagation.layers[0].edge.dropout.p = 0.0
    if like is not None:
        classifier.load_state_dict(like.state_dict())
    return classifier


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_each_gives_logits_with_a_gradient(kind, batch):
    embeddings, labels = batch
    logits = CLASSIFIERS[kind](CLASSES, SIZE).double()(embeddings, labels)
    assert logits.shape == (9, CLASSES)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert embeddings.grad.norm(dim=1).min() > 0


def test_own_gradients_leave_the_logits_and_are_those_of_the_node_alone(batch):
    embeddings, labels = batch
    whole = make(GraphClassifier)
    own = make(OwnGradientGraphClassifier, whole)
    logits, expected = own(embeddings, labels), whole(embeddings, labels)
    torch.testing.assert_close(logits, expected)
    for node in (0, 5):
        (gradient,) = torch.autograd.grad(own(embeddings, labels)[node].square().sum(), embeddings)
        assert gradient[node].norm() > 0
        # The BatchNorm before the classifier is the only way left to other nodes.
        own.eval()
        (gradient,) = torch.autograd.grad(own(embeddings, labels)[node].square().sum(), embeddings)
        others = torch.arange(9) != node
        assert gradient[others].abs().max() == 0
        own.train()


def test_masked_graphs_pass_nothing_within_a_class(batch):
    """Where all samples are of one class, nodes have neither negatives nor messages: the graph is each node itself."""
    embeddings, _ = batch
    masked = make(MaskedGraphClassifier).eval()
    labels = torch.zeros(9, dtype=torch.long)
    together = masked(embeddings, labels)
    alone = torch.cat([masked(row[None], labels[:1]) for row in embeddings])
    torch.testing.assert_close(together, alone)
    # With the usual graph samples of a class hear each other.
    usual = make(GraphClassifier, masked).eval()
    assert (
        usual(embeddings, labels) - torch.cat([usual(row[None], labels[:1]) for row in embeddings])
    ).abs().max() > 1e-3

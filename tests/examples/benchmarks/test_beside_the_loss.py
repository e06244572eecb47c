"""Additions to a loss without a generator: classifiers, and synthetic classes."""

import pytest
import torch
from comparison.beside_the_loss import Extras
from comparison.classifiers import CLASSIFIERS, GraphClassifier, MaskedGraphClassifier, OwnGradientGraphClassifier
from comparison.crossing import cross_classes
from comparison.plan import misfit
from helpers.strategies import labels as any_labels
from hypothesis import given
from pytorch_metric_learning import losses, miners

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


@given(any_labels())
def test_every_sample_takes_each_channel_from_one_of_two_samples(labels):
    torch.manual_seed(0)
    features = torch.randn(len(labels), 64, requires_grad=True)
    rows, new = cross_classes(features, labels, 2, 100)
    count = len(labels.unique())
    partners = min(2, max(count - 1, 0))
    assert new.unique().tolist() == list(range(100, 100 + partners * count))
    by_pair = {}
    for row, label in zip(rows, new.tolist(), strict=True):
        equal = row == features  # (B, F)
        parents = [i for i in range(len(labels)) if equal[i].any()]
        assert equal.any(dim=0).all()
        assert len(parents) == 2
        assert labels[parents[0]] != labels[parents[1]]
        # One coin per channel and pair of classes: all samples of a new class share it.
        first = min(parents, key=lambda i: labels[i])
        by_pair.setdefault(label, []).append((labels[parents].sort().values.tolist(), equal[first]))
    for samples in by_pair.values():
        assert all(s[0] == samples[0][0] and torch.equal(s[1], samples[0][1]) for s in samples)


def test_sizes_and_gradient():
    labels = torch.arange(4).repeat_interleave(torch.tensor([3, 2, 1, 3]))
    features = torch.randn(9, 6, requires_grad=True)
    rows, new = cross_classes(features, labels, 9, 4)
    assert len(new.unique()) == 12  # each class with each of three others, in either order
    # Classes of 3 and 3 samples make 3, others the smaller number.
    assert len(rows) == 2 * (3 + 2 + 2 + 1 + 1 + 1)
    rows.sum().backward()
    assert features.grad.sum() == rows.numel()


@pytest.mark.parametrize("count", [0, 3])
def test_a_batch_of_one_class_crosses_nothing(count):
    rows, new = cross_classes(torch.randn(count, 6), torch.zeros(count, dtype=torch.long), 3, 5)
    assert rows.shape == (0, 6)
    assert new.shape == (0,)


def test_losses_with_proxies_are_refused_before_training():
    assert [misfit(loss, "crossed_81") for loss in ("n_pairs", "multi_similarity", "nt_xent")] == [None] * 3
    assert misfit("proxy_anchor", "classifier") is None
    assert str(misfit("proxy_anchor", "crossed_81")).startswith(
        "crossed_81 makes new classes, and proxy_anchor has proxies of the training classes alone"
    )


class Half(torch.nn.Module):
    """A head that is known."""

    def forward(self, features):
        return features[:, : features.shape[1] // 2]


class HalvingHead(torch.nn.Module):
    """A network whose head is known."""

    head = Half()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_total_adds_a_weighted_cross_entropy(weight):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = losses.ContrastiveLoss()
    settings = {"embedding_size": 4, "generator_lr": 1e-3, "classifier": "linear", "classifier_weight": weight}
    extras = Extras(settings, 3, loss, "cpu")
    expected = loss(embeddings, labels)
    logits = embeddings @ extras.classifier.linear.weight.t() + extras.classifier.linear.bias
    expected = expected - weight * logits.log_softmax(dim=1)[range(6), labels].mean()
    torch.testing.assert_close(extras.total(None, None, embeddings, labels), expected)


def test_the_total_is_the_mean_with_and_without_synthetic_classes():
    torch.manual_seed(0)
    features, labels = torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    network, loss = HalvingHead(), losses.NTXentLoss()
    extras = Extras({"embedding_size": 4, "generator_lr": 1e-3, "crossed": 2}, 3, loss, "cpu")
    torch.manual_seed(1)
    found = extras.total(network, features, network.head(features), labels)
    torch.manual_seed(1)
    rows, row_labels = cross_classes(features, labels, 2, 3)
    together = loss(network.head(torch.cat([features, rows])), torch.cat([labels, row_labels]))
    torch.testing.assert_close(found, (loss(network.head(features), labels) + together) / 2)


def test_a_miner_chooses_the_pairs():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(9, 4), torch.arange(9) // 3
    loss = losses.TripletMarginLoss()
    extras = Extras({"embedding_size": 4, "generator_lr": 1e-3, "miner": "BatchHardMiner"}, 3, loss, "cpu")
    expected = loss(embeddings, labels, miners.BatchHardMiner()(embeddings, labels))
    found = extras.total(None, None, embeddings, labels)
    torch.testing.assert_close(found, expected)
    assert found != loss(embeddings, labels)

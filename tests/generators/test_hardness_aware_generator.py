import math

import pytest
import torch
import torch.nn.functional as F
from helpers.compared import NUM_CLASSES, SIZE, anchor_rows, check_against, negative_pairs, positives_of, random_rows
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca import HardNegativeGenerationLoss
from pml_gca.generators import HardnessAwareGenerator
from pml_gca.losses import SyntheticBatch, synthetic_loss


def distance(x, y):
    return torch.sqrt(((x - y) ** 2).sum())


def candidates(z, y, num_anchors, alpha, level):
    """[(anchor, label, ẑ)] by the paper's equations."""
    rows, out = anchor_rows(z, num_anchors), []
    pull = 1.0 if level == math.inf else math.exp(-alpha / level)
    for i, j in negative_pairs(y, num_anchors):
        near, far = distance(rows[i], rows[positives_of(y, i)[0]]), distance(rows[i], rows[j])
        ratio = pull + (1 - pull) * near / far
        out.append((i, y[j], rows[i] + ratio * (rows[j] - rows[i]) if near < far else rows[j]))
    return out


@settings(max_examples=15)
@given(labels(max_samples=4), st.sampled_from([0.3, 5.0, 90.0, math.inf]), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, level, seed, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    generator, z = HardnessAwareGenerator(NUM_CLASSES, SIZE, alpha=5.0), random_rows(len(y), seed)
    check_against(
        generator(z, y, num_anchors, level), candidates(z, y.tolist(), num_anchors, generator.alpha, level), z
    )


def mlp(network, x):
    first, _, second = network
    return second.weight @ torch.relu(first.weight @ x + first.bias) + second.bias


@settings(max_examples=10)
@given(labels(min_classes=2, max_classes=5, max_samples=3), st.integers(0, 99), st.data())
def test_reembedding_and_its_objectives_agree_with_the_slow_oracle(y, seed, data):
    num_anchors = data.draw(st.integers(1, len(y)))
    torch.manual_seed(seed)
    generator = HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True, softmax_weight=0.7).double()
    z, names = random_rows(len(y), seed), y.tolist()
    network, classifier = generator.network, generator.auxiliary_classifier
    negatives = generator(z, y, num_anchors, 30.0)
    pulled = candidates(z, names, num_anchors, 90.0, 30.0)
    check_against(negatives, [(i, label, mlp(network, row)) for i, label, row in pulled], z)

    def logits(row, weight, bias):
        return weight @ row + bias

    fixed = (classifier.weight.detach(), classifier.bias.detach())
    reconstruction = sum(((mlp(network, row.detach()) - row.detach()) ** 2).sum() for row in z[:num_anchors])
    soft = [
        F.cross_entropy(logits(mlp(network, row.detach()), *fixed), torch.tensor(label)) for _, label, row in pulled
    ]
    auxiliary = [
        F.cross_entropy(logits(row.detach(), classifier.weight, classifier.bias), label)
        for row, label in zip(z[:num_anchors], y, strict=False)
    ]
    expected = {
        "generation_loss": reconstruction / num_anchors + (0.7 * sum(soft) / len(soft) if soft else 0.0),
        "auxiliary_classification_loss": sum(auxiliary) / num_anchors,
    }
    assert negatives.objectives.keys() == expected.keys()
    parameters = [z, *generator.parameters()]
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    for name, wanted in expected.items():
        torch.testing.assert_close(negatives.objectives[name], wanted)
        ours, theirs = (torch.autograd.grad(x, parameters, **options) for x in (negatives.objectives[name], wanted))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        assert not ours[0].any()


def test_the_negatives_train_the_embeddings_and_not_the_network():
    generator = HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True)
    z = random_rows(6, dtype=torch.float32)
    generator(z, torch.tensor([0, 1, 2, 0, 1, 2])).embeddings.square().sum().backward()
    assert z.grad.any(dim=1).all()
    assert all(p.grad is None for p in generator.parameters())


@settings(max_examples=15)
@given(labels(max_samples=2), st.data())
def test_permuting_the_batch_permutes_the_negatives(y, data):
    """With two samples a class at most, the next positive does not depend on the order."""
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    generator, z = HardnessAwareGenerator(NUM_CLASSES, SIZE), random_rows(len(y))
    names = y.tolist()
    before, after = generator(z, y, None, 40.0), generator(z[order], y[order], None, 40.0)
    wanted = dict(zip(negative_pairs(names, len(y)), before.embeddings, strict=True))
    pairs = [(order[i].item(), order[j].item()) for i, j in negative_pairs(y[order].tolist(), len(y))]
    assert sorted(pairs) == sorted(wanted)
    for pair, row in zip(pairs, after.embeddings, strict=True):
        torch.testing.assert_close(row, wanted[pair])


def test_extreme_levels():
    """Before anything was observed the negatives are the real ones; in the end they are as near as the positive."""
    y = torch.tensor([0, 0, 1, 1])
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [0.5, 0.0]])
    generator = HardnessAwareGenerator(2, 2)
    torch.testing.assert_close(generator(z, y).embeddings[:2], z[2:])
    for level in (0.0, -1.0):
        torch.testing.assert_close(generator(z, y, None, level).embeddings[:2], torch.tensor([[0.0, 1.0], [0.5, 0.0]]))


def test_with_reembedding_the_level_of_the_generator_weighs_the_negatives():
    class First(torch.nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.mean() * 0

    @synthetic_loss.register(First)
    def _(loss, batch: SyntheticBatch):
        return batch.negatives.embeddings.sum() * 0 + 1

    generator = HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True, collect_stats=True)
    loss = HardNegativeGenerationLoss(First(), generator, beta=3.0, collect_stats=True)
    z, y = random_rows(6, dtype=torch.float32), torch.arange(6) % 3
    loss(z, y)
    assert loss.synthetic_weight == 0
    level = generator.generation_loss
    assert generator.reconstruction_loss + 0.5 * generator.softmax_loss == pytest.approx(level)
    assert loss.generator_level.item() == pytest.approx(level)
    loss(z, y)
    assert loss.synthetic_weight == loss.synthetic_loss == pytest.approx(1 - math.exp(-3 / level), rel=1e-5)


def test_parameter_groups():
    generator = HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True)
    network, classifier = generator.parameter_groups(lr=0.1, classifier_lr=0.2)
    assert (network["lr"], classifier["lr"]) == (0.1, 0.2)
    assert network["params"] + classifier["params"] == list(generator.parameters())
    assert [tuple(p.shape) for p in network["params"]] == [(16, 8), (16,), (8, 16), (8,)]
    assert HardnessAwareGenerator(NUM_CLASSES, SIZE).parameter_groups(lr=0.1) == [{"params": [], "lr": 0.1}]


def test_reembedding_learns_to_reconstruct_and_to_keep_classes():
    torch.manual_seed(0)
    generator = HardnessAwareGenerator(3, SIZE, reembed=True)
    y = torch.arange(12) % 3
    z = F.normalize(torch.eye(3, SIZE)[y] + 0.2 * torch.randn(12, SIZE))
    optimizer = torch.optim.AdamW(generator.parameter_groups(lr=1e-2, classifier_lr=1e-2))
    values = []
    for _ in range(200):
        terms = generator(z, y, None, 50.0).objectives
        values.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert values[-1]["generation_loss"] < 0.3 * values[0]["generation_loss"]
    assert values[-1]["auxiliary_classification_loss"] < 0.3 * values[0]["auxiliary_classification_loss"]

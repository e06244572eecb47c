"""Soft labels of synthetic negatives."""

import pytest
import torch
from comparison.ideas import SoftCoin, SoftConstant, SoftDetachedGraph, SoftGraph, SoftRatioGraph
from comparison.soft_labels import TERM, ClassifiedSoftly, ProxyAnchor, SoftNegatives, soft_targets
from pytorch_metric_learning import losses

from pml_gca import HardNegativeGenerationLoss
from pml_gca.correlation.edges import edge_index
from pml_gca.generators import ConstantGenerator, SyntheticNegatives
from pml_gca.generators.interpolation import interpolate

CLASSES, SIZE = 5, 8
LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4])


def embeddings():
    torch.manual_seed(0)
    return torch.randn(len(LABELS), SIZE, requires_grad=True)


@pytest.mark.parametrize("kind", [SoftGraph, SoftRatioGraph, SoftDetachedGraph, SoftConstant, SoftCoin])
@pytest.mark.parametrize("merging", ["random", "mean"])
def test_shares_and_negatives_against_candidates_merged_one_by_one(kind, merging):
    z = embeddings()
    torch.manual_seed(3)
    generator = kind(CLASSES, SIZE, alpha=2.0, merging=merging)
    torch.manual_seed(5)
    found = generator(z, LABELS, metric_level=4.0)
    torch.manual_seed(5)
    draws, coefficients = torch.rand(len(z), len(z)), generator._coefficients.float()
    strength, index = torch.exp(torch.tensor(-2.0 / 4.0)), edge_index(len(z))
    z, number = z.detach(), 0
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if LABELS[j] == LABELS[i] and j != i]
        if not positives:
            continue
        positive = next((j for j in positives if j > i), positives[0])
        near = (z[i] - z[positive]).norm()
        for label in LABELS.unique().tolist():
            members = [j for j in range(len(z)) if LABELS[j] == label]
            if label == LABELS[i]:
                continue
            merged, merged_share = torch.zeros(SIZE), torch.zeros(())
            for m, j in enumerate(members):
                mine = coefficients[index[i, j]]
                row = interpolate(z[i][None], z[j][None], mine[None], near[None], strength)[0]
                share, far = mine.mean(), (z[i] - z[j]).norm()
                if kind is SoftRatioGraph:
                    share = (near + (far - near) * share * strength) / far if near < far else torch.tensor(1.0)
                u = 0.0 if m == 0 else m / (m + 1) if merging == "mean" else draws[i, j]
                merged, merged_share = (1 - u) * row + u * merged, (1 - u) * share + u * merged_share
            assert (found.anchors[number], found.labels[number]) == (i, label)
            torch.testing.assert_close(found.embeddings[number], merged)
            torch.testing.assert_close(found.shares[number], merged_share)
            number += 1
    assert number == len(found)
    assert not found.shares.requires_grad
    assert found.embeddings.requires_grad


def negatives(shares=True):
    torch.manual_seed(1)
    rows, labels, anchors = torch.randn(3, SIZE), torch.tensor([1, 3, 0]), torch.tensor([0, 0, 2])
    return (
        SoftNegatives(rows, labels, anchors, shares=torch.tensor([0.25, 1.0, 0.5]))
        if shares
        else (SyntheticNegatives(rows, labels, anchors))
    )


def test_targets():
    expected = [[0.75, 0.25, 0, 0, 0], [0, 0, 0, 1, 0], [0.5, 0.5, 0, 0, 0]]
    torch.testing.assert_close(soft_targets(negatives(), LABELS, CLASSES), torch.tensor(expected))
    hard = [[0.0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(soft_targets(negatives(shares=False), LABELS, CLASSES), torch.tensor(hard))


@pytest.mark.parametrize("seed", range(3))
def test_the_soft_loss_of_proxies_against_a_loop(seed):
    torch.manual_seed(seed)
    loss, rows = ProxyAnchor(CLASSES, SIZE), torch.randn(2, SIZE)
    targets = torch.tensor([[0.25, 0.75, 0, 0, 0], [0, 0.5, 0, 0.5, 0]])
    positive = negative = 0.0
    for p in range(CLASSES):
        similarity = torch.cosine_similarity(rows, loss.proxies[p][None])
        positive += torch.log(1 + sum(targets[x, p] * torch.exp(-32 * (similarity[x] - 0.1)) for x in range(2)))
        negative += torch.log(1 + sum((1 - targets[x, p]) * torch.exp(32 * (similarity[x] + 0.1)) for x in range(2)))
    torch.testing.assert_close(loss.soft(rows, targets), positive / 3 + negative / CLASSES)


def test_hard_labels_give_the_loss_of_pml():
    torch.manual_seed(0)
    ours = ProxyAnchor(CLASSES, SIZE)
    theirs = losses.ProxyAnchorLoss(CLASSES, SIZE)
    theirs.load_state_dict(ours.state_dict())
    z = embeddings()
    hard = torch.nn.functional.one_hot(LABELS, CLASSES).float()
    torch.testing.assert_close(ours.soft(z, hard), theirs(z, LABELS))
    values = []
    for loss in (ours, theirs):
        torch.manual_seed(2)
        values.append(HardNegativeGenerationLoss(loss, ConstantGenerator(CLASSES, SIZE))(z, LABELS))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_soft_labels_reach_the_synthetic_loss(coefficient):
    z, loss = embeddings(), ProxyAnchor(CLASSES, SIZE)
    wrapped = HardNegativeGenerationLoss(loss, SoftConstant(CLASSES, SIZE, coefficient=coefficient), collect_stats=True)
    torch.manual_seed(2)
    wrapped(z, LABELS).backward()
    torch.manual_seed(2)
    made = SoftConstant(CLASSES, SIZE, coefficient=coefficient)(z, LABELS)
    torch.testing.assert_close(made.shares, torch.full((len(made),), coefficient))
    real = torch.nn.functional.one_hot(LABELS, CLASSES)
    expected = loss.soft(torch.cat([z, made.embeddings]), torch.cat([real, soft_targets(made, LABELS, CLASSES)]))
    assert wrapped.synthetic_loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", [SoftConstant, ConstantGenerator])
def test_a_classifier_learns_from_anchors_and_negatives(kind):
    z = embeddings()
    generator = ClassifiedSoftly(kind(CLASSES, SIZE, coefficient=0.3))
    torch.manual_seed(2)
    found = generator(z, LABELS)
    real = generator.classifier(z).log_softmax(dim=1)
    made = generator.classifier(found.embeddings).log_softmax(dim=1)
    own, owner = found.labels, LABELS[found.anchors]
    share = 0.3 if kind is SoftConstant else 1.0
    expected = -sum(real[i, LABELS[i]] for i in range(len(z))) / len(z) / 2
    each = [share * made[s, own[s]] + (1 - share) * made[s, owner[s]] for s in range(len(found))]
    torch.testing.assert_close(found.objectives[TERM], expected - sum(each) / len(found) / 2)
    (group,) = generator.parameter_groups(1e-4, classifier_lr=1e-3)
    assert group["lr"] == 1e-3
    assert set(group["params"]) == set(generator.parameters())

import pytest
import torch
from helpers.strategies import labels
from hypothesis import given

from pml_gca.paper import PublishedNPairsLoss


def expected(z, y, samples_per_class):
    """The loss by loops: the first sample of each class against its others in turn and the m-th of other classes."""
    members = [[i for i, label in enumerate(y) if label == c] for c in sorted(set(y))]
    values = []
    for m in range(1, max(map(len, members))):
        deep = [rows for rows in members if len(rows) > m]
        for rows in deep:
            scores = torch.stack([z[rows[0]] @ z[others[m]] for others in deep])
            values.append(scores.logsumexp(0) - z[rows[0]] @ z[rows[m]])
    penalty = 0.25 * 3e-3 * samples_per_class * (z**2).sum(dim=1).mean()
    return (sum(values) / len(values) if values else 0) + penalty


@given(y=labels(max_classes=5, max_samples=4))
def test_any_composition(y):
    z = torch.randn(len(y), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = PublishedNPairsLoss(samples_per_class=3)
    value = loss(z, y)
    torch.testing.assert_close(value, expected(z, y.tolist(), 3))
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], torch.autograd.grad(expected(z, y.tolist(), 3), z)[0])


def test_empty_batches_and_given_pairs():
    loss = PublishedNPairsLoss(samples_per_class=2)
    z = torch.randn(0, 4, requires_grad=True)
    loss(z, torch.zeros(0, dtype=torch.long)).backward()
    z = torch.randn(4, 4)
    pairs = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2]))
    assert loss(z, torch.tensor([0, 0, 1, 1]), pairs).item() == pytest.approx(
        0.25 * 3e-3 * 2 * (z**2).sum(dim=1).mean().item()
    )  # one pair leaves nothing to tell it from

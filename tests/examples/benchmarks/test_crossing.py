import sys
from pathlib import Path

import pytest
import torch
from helpers.strategies import labels as any_labels
from hypothesis import given

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from comparison.crossing import cross_classes
from comparison.plan import check_pair


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
    for loss in ("n_pairs", "multi_similarity", "nt_xent"):
        check_pair(loss, "crossed_81")
    check_pair("proxy_anchor", "classifier")
    with pytest.raises(ValueError, match="crossed_81 makes new classes, and proxy_anchor has proxies"):
        check_pair("proxy_anchor", "crossed_81")

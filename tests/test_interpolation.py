import oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import labels

from pml_gca.interpolation import interpolate, merge_candidates, merging_weights, next_positive, plan_candidates


@given(labels())
def test_next_positive_is_the_next_of_the_class_cyclically(y):
    positives, has_positive = next_positive(y)
    for i in range(len(y)):
        expected = oracle.next_positive(y.tolist(), i)
        assert has_positive[i] == (expected is not None)
        assert positives[i] == (i if expected is None else expected)


@given(labels(), st.data())
def test_plan_pairs_every_generating_anchor_with_all_negatives(y, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    plan = plan_candidates(y, num_anchors)
    names = y.tolist()
    generating = [i for i in range(num_anchors) if names.count(names[i]) > 1]
    expected = [(i, j) for i in generating for j in range(len(y)) if names[i] != names[j]]
    assert list(zip(plan.anchors.tolist(), plan.negatives.tolist(), strict=True)) == expected
    cells = [(i, label) for i in generating for label in sorted(set(names)) if label != names[i]]
    found = list(zip(plan.synthetic_anchors.tolist(), plan.synthetic_labels.tolist(), strict=True))
    assert found == cells
    assert [found[slot] for slot in plan.slots.tolist()] == [(i, names[j]) for i, j in expected]


@given(labels(), st.integers(0, 999), st.sampled_from([torch.float32, torch.float64]))
def test_merging_weights_unroll_the_recursion(y, seed, dtype):
    source = torch.Generator().manual_seed(seed)
    draws = torch.rand(3, len(y), generator=source, dtype=dtype)
    values = torch.randn(len(y), generator=source, dtype=dtype)
    weights = merging_weights(draws, y)
    assert weights.dtype == dtype
    assert weights.min() >= 0
    for a in range(3):
        for label in set(y.tolist()):
            members = [j for j in range(len(y)) if y[j] == label]
            merged = values[members[0]]
            for m in members[1:]:
                merged = (1 - draws[a, m]) * values[m] + draws[a, m] * merged
            torch.testing.assert_close((weights[a, members] * values[members]).sum(), merged, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(weights[a, members].sum(), torch.ones((), dtype=dtype))


def test_merging_weights_of_extreme_draws():
    y = torch.tensor([3, 1, 3, 1, 3])
    assert merging_weights(torch.zeros(1, 5), y).tolist() == [[0, 0, 0, 1, 1]]  # the last candidate replaces all
    assert merging_weights(torch.ones(1, 5), y).tolist() == [[1, 1, 0, 0, 0]]  # the first is kept
    assert merging_weights(torch.rand(2, 0), y[:0]).shape == (2, 0)


@settings(max_examples=15)
@given(labels(min_classes=2, max_samples=4), st.integers(0, 999), st.floats(0, 1))
def test_candidates_agree_with_the_oracle_and_keep_their_distance(y, seed, strength):
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(len(y), 5, generator=source, dtype=torch.float64)
    plan = plan_candidates(y)
    coefficients = torch.rand(len(y), len(y), 5, generator=source, dtype=torch.float64)
    coefficients[coefficients < 0.2] = 0
    near = torch.linalg.vector_norm(z - z[plan.positives], dim=1)[plan.anchors]
    pairs = (plan.anchors, plan.negatives)
    candidates = interpolate(z[pairs[0]], z[pairs[1]], coefficients[pairs], near, strength)
    for row, (i, j) in zip(candidates, zip(*(p.tolist() for p in pairs), strict=True), strict=True):
        torch.testing.assert_close(row, oracle.candidate(z, y.tolist(), i, j, coefficients[i, j], strength))
    distance = torch.linalg.vector_norm(candidates - z[pairs[0]], dim=1)
    far = torch.linalg.vector_norm(z[pairs[1]] - z[pairs[0]], dim=1)
    assert (distance <= far * (1 + 1e-9)).all()
    assert (distance >= torch.minimum(near, far) * (1 - 1e-9)).all()


def test_no_pull_and_full_pull():
    anchor, negative = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    ones, nothing = torch.ones(1, 2), torch.zeros(1, 2)
    assert torch.equal(interpolate(anchor, negative, ones, torch.tensor([1.0]), 1.0), negative)
    torch.testing.assert_close(interpolate(anchor, negative, nothing, torch.tensor([1.0]), 1.0), negative / 5)
    torch.testing.assert_close(interpolate(anchor, negative, ones, torch.tensor([1.0]), 0.0), negative / 5)
    # Nearer than the positive, or on top of the anchor: the negative stays as it is.
    assert torch.equal(interpolate(anchor, negative, nothing, torch.tensor([9.0]), 1.0), negative)
    assert torch.equal(interpolate(anchor, anchor, nothing, torch.tensor([0.0]), 1.0), anchor)


def test_duplicates_have_finite_gradients():
    z = torch.ones(4, 3, requires_grad=True)
    plan = plan_candidates(torch.tensor([0, 0, 1, 1]))
    near = torch.linalg.vector_norm(z - z[plan.positives], dim=1)[plan.anchors]
    candidates = interpolate(z[plan.anchors], z[plan.negatives], torch.rand(8, 3), near, 0.5)
    merge_candidates(candidates, merging_weights(torch.rand(4, 4), torch.tensor([0, 0, 1, 1])), plan).sum().backward()
    assert torch.isfinite(z.grad).all()

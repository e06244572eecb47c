import torch
from helpers import oracle
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.correlation.edges import edge_pairs
from pml_gca.generators.interpolation import interpolate, positive_distances
from pml_gca.generators.merging import class_weights, hardest_weights, mean_weights, merging_weights
from pml_gca.generators.planning import next_positive, plan_candidates
from pml_gca.generators.synthesis import synthesize


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
    cells = [(i, label) for i in generating for label in sorted(set(names)) if label != names[i]]
    assert list(zip(plan.synthetic_anchors.tolist(), plan.synthetic_labels.tolist(), strict=True)) == cells
    assert plan.slots.shape == (num_anchors, len(y))
    for i in range(num_anchors):
        for j in range(len(y)):
            has_slot = i in generating and names[i] != names[j]
            assert plan.slots[i, j] == (cells.index((i, names[j])) if has_slot else len(cells))


@given(labels(), st.integers(0, 999), st.sampled_from([torch.float32, torch.float64]))
def test_merging_weights_unroll_the_recursion(y, seed, dtype):
    source = torch.Generator().manual_seed(seed)
    draws = torch.rand(3, len(y), generator=source, dtype=dtype)
    values = torch.randn(len(y), generator=source, dtype=dtype)
    weights = merging_weights(draws, plan_candidates(y, 3 if len(y) >= 3 else None))
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
    plan = plan_candidates(y)
    assert merging_weights(torch.zeros(1, 5), plan).tolist() == [[0, 0, 0, 1, 1]]  # the last candidate replaces all
    assert merging_weights(torch.ones(1, 5), plan).tolist() == [[1, 1, 0, 0, 0]]  # the first is kept
    assert merging_weights(torch.rand(2, 0), plan_candidates(y[:0])).shape == (2, 0)


@given(labels(), st.integers(0, 999), st.booleans())
def test_hardest_weights_choose_the_largest_cosine_similarity(y, seed, with_twins):
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(len(y), 3, generator=source, dtype=torch.float64) * (1 + y[:, None])
    if with_twins:
        z[1:] = torch.where(torch.rand(len(y) - 1, 1, generator=source) < 0.5, z[:1], z[1:])
    num_anchors = min(4, len(y))
    weights = hardest_weights(z, plan_candidates(y, num_anchors))
    assert weights.shape == (num_anchors, len(y))
    for a in range(num_anchors):
        for label in set(y.tolist()):
            members = [j for j in range(len(y)) if y[j] == label]
            cosines = [float(z[a] @ z[j] / z[a].norm() / z[j].norm()) for j in members]
            nearest = [cosine > max(cosines) - 1e-9 for cosine in cosines]
            found = weights[a, members].tolist()
            assert abs(sum(found) - 1) < 1e-9
            assert all(near or weight == 0 for near, weight in zip(nearest, found, strict=True))


def test_hardest_weights_of_what_has_no_direction_and_of_equals():
    y = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    z = torch.tensor([[1.0, 0], [0, 0], [-1, 0], [2, 0], [1, 1], [2, 0], [0, 5]], dtype=torch.bfloat16)
    weights = hardest_weights(z.requires_grad_(), plan_candidates(y, 1))
    assert weights.tolist() == [[1, 1, 0, 0.5, 0, 0.5, 0]]
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert hardest_weights(z[:0], plan_candidates(y[:0])).shape == (0, 0)


def test_class_weights_are_those_of_their_name():
    y, z, draws = torch.tensor([0, 1, 1, 0]), torch.randn(4, 3), torch.rand(4, 4)
    plan = plan_candidates(y)
    assert torch.equal(class_weights("random", z, plan, draws), merging_weights(draws, plan))
    assert torch.equal(class_weights("mean", z, plan, draws), mean_weights(plan, draws))
    assert torch.equal(class_weights("hardest", z, plan, draws), hardest_weights(z, plan))


@settings(max_examples=15)
@given(labels(min_classes=2, max_samples=4), st.integers(0, 999), st.floats(0, 1))
def test_candidates_agree_with_the_oracle_and_keep_their_distance(y, seed, strength):
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(len(y), 5, generator=source, dtype=torch.float64)
    coefficients = torch.rand(len(y), len(y), 5, generator=source, dtype=torch.float64)
    coefficients[coefficients < 0.2] = 0
    pairs = (y[:, None] != y).nonzero(as_tuple=True)
    near = positive_distances(z, plan_candidates(y))[pairs[0]]
    candidates = interpolate(z[pairs[0]], z[pairs[1]], coefficients[pairs], near, strength)
    distance = torch.linalg.vector_norm(candidates - z[pairs[0]], dim=1)
    far = torch.linalg.vector_norm(z[pairs[1]] - z[pairs[0]], dim=1)
    assert (distance <= far * (1 + 1e-9)).all()
    assert (distance >= torch.minimum(near, far) * (1 - 1e-9)).all()
    for row, (i, j) in zip(candidates, zip(*(p.tolist() for p in pairs), strict=True), strict=True):
        if y.tolist().count(y[i]) > 1:
            torch.testing.assert_close(row, oracle.candidate(z, y.tolist(), i, j, coefficients[i, j], strength))


@settings(max_examples=30)
@given(labels(min_classes=2, max_samples=4), st.integers(0, 999), st.floats(0, 1), st.integers(1, 40), st.data())
def test_synthetic_negatives_and_gradients_agree_with_autograd(y, seed, strength, max_edges, data):
    """Against the merged candidates of all pairs at once, differentiated by autograd."""
    num_anchors = data.draw(st.integers(0, len(y)))
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(len(y), 5, generator=source, dtype=torch.float64)
    if seed % 3 == 0:
        z[-1] = z[0]  # a negative or a positive at distance 0
    first, second = edge_pairs(len(y))
    coefficients = torch.rand(len(first), 5, generator=source, dtype=torch.float64).requires_grad_()
    z.requires_grad_()
    plan = plan_candidates(y, num_anchors)
    weights = merging_weights(torch.rand(num_anchors, len(y), generator=source, dtype=torch.float64), plan)
    ours = synthesize(z, coefficients, plan, weights, strength, max_edges)

    dense = z.new_zeros(len(y), len(y), 5).index_put((first, second), coefficients)
    dense = dense.index_put((second, first), coefficients)
    i, j = (plan.slots < len(plan.synthetic_anchors)).nonzero(as_tuple=True)
    near = positive_distances(z, plan)[i]
    candidates = interpolate(z[i], z[j], dense[i, j], near, strength) * weights[i, j, None]
    expected = z.new_zeros(len(plan.synthetic_anchors), 5).index_add(0, plan.slots[i, j], candidates)
    scores = torch.randn(expected.shape, generator=source, dtype=torch.float64)
    for merged, inputs in zip(ours, (z, coefficients), strict=True):
        torch.testing.assert_close(merged, expected)
        both = torch.autograd.grad((merged * scores).sum(), [z, coefficients], allow_unused=True, retain_graph=True)
        wanted = torch.autograd.grad((expected * scores).sum(), inputs, retain_graph=True)[0]
        torch.testing.assert_close(both[0] if inputs is z else both[1], wanted)
        other = both[1] if inputs is z else both[0]
        assert other is None or not other.any()


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
    z, coefficients = torch.ones(4, 3, requires_grad=True), torch.rand(10, 3, requires_grad=True)
    plan = plan_candidates(torch.tensor([0, 0, 1, 1]))
    weights = merging_weights(torch.rand(4, 4), plan)
    for_nodes, for_coefficients = synthesize(z, coefficients, plan, weights, 0.5, 5)
    (for_nodes.sum() + for_coefficients.sum()).backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(coefficients.grad).all()

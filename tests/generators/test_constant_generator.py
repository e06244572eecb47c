import math

import torch
from helpers.compared import NUM_CLASSES, SIZE, check_against, generate, interpolated, positives_of, random_rows
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.generators import ConstantGenerator


@settings(max_examples=15)
@given(labels(max_samples=4), st.floats(0, 1), st.sampled_from([0.5, 5.0, math.inf]), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, coefficient, level, seed, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    generator, z = ConstantGenerator(NUM_CLASSES, SIZE, coefficient=coefficient, alpha=4.0), random_rows(len(y), seed)
    torch.manual_seed(seed)
    draws = torch.rand(num_anchors, len(y), dtype=torch.float64)
    constant = torch.full((len(y), len(y), SIZE), coefficient, dtype=torch.float64)
    expected = interpolated(z, y.tolist(), constant, draws, math.exp(-4.0 / level), num_anchors)
    check_against(generate(generator, z, y, num_anchors, level, draws=draws), expected, z)


@settings(max_examples=15)
@given(labels(max_samples=2), st.data())
def test_permuting_the_batch_permutes_the_negatives(y, data):
    """With two samples a class at most, neither the next positive nor a mean of them depends on the order."""
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    generator, z = ConstantGenerator(NUM_CLASSES, SIZE), random_rows(len(y))
    draws = torch.full((len(y), len(y)), 0.5, dtype=torch.float64)
    before = generate(generator, z, y, len(y), 3.0, draws=draws)
    after = generate(generator, z[order], y[order], len(y), 3.0, draws=draws)
    wanted = {
        (i, label): row
        for i, label, row in zip(before.anchors.tolist(), before.labels.tolist(), before.embeddings, strict=True)
    }
    assert len(after) == len(wanted)
    for i, label, row in zip(after.anchors.tolist(), after.labels.tolist(), after.embeddings, strict=True):
        torch.testing.assert_close(row, wanted[order[i].item(), label])


def test_negatives_as_near_as_the_positive():
    """λ = 0, and one sample a class among the negatives."""
    y = torch.tensor([0, 0, 1, 2, 3])
    z = random_rows(5).detach()
    negatives = ConstantGenerator(NUM_CLASSES, SIZE, coefficient=0)(z, y)
    for i, label, row in zip(negatives.anchors, negatives.labels, negatives.embeddings, strict=True):
        near, far = ((z[i] - z[j]).norm() for j in (positives_of(y.tolist(), int(i))[0], int(label) + 1))
        torch.testing.assert_close((z[i] - row).norm(), torch.minimum(near, far))


def test_real_negatives_merged_at_random():
    torch.manual_seed(0)
    y, z = torch.tensor([0, 1, 1, 0, 2, 2, 2]), random_rows(7).detach()
    negatives = ConstantGenerator(NUM_CLASSES, SIZE, coefficient=1, alpha=0)(z, y, None, 1e-3)
    for label, row in zip(negatives.labels, negatives.embeddings, strict=True):
        weights = torch.linalg.lstsq(z[y == label].t(), row).solution
        assert (weights > -1e-9).all()
        torch.testing.assert_close(weights.sum(), torch.ones_like(weights.sum()))
        torch.testing.assert_close(z[y == label].t() @ weights, row)


def test_the_coefficients_take_no_memory():
    generator = ConstantGenerator(2, 512)
    coefficients = generator.coefficients_of_edges(1000, torch.zeros(3, 512), None)
    assert coefficients.shape == (1000, 512)
    assert coefficients.untyped_storage().nbytes() == 4

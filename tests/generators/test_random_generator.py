import math

import pytest
import torch
from helpers.compared import NUM_CLASSES, SIZE, check_against, generate, interpolated, random_rows
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.correlation.edges import to_dense
from pml_gca.generators import ConstantGenerator, RandomGenerator


@settings(max_examples=15)
@given(labels(max_classes=5, max_samples=4), st.sampled_from([0.5, 5.0, math.inf]), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, level, seed, data):
    """Of given coefficients, and of those that it draws."""
    num_anchors = data.draw(st.integers(0, len(y)))
    generator, z = RandomGenerator(NUM_CLASSES, SIZE, alpha=4.0), random_rows(len(y), seed)
    torch.manual_seed(seed)
    draws = torch.rand(num_anchors, len(y), dtype=torch.float64)
    num_edges = len(y) * (len(y) + 1) // 2
    state = torch.random.get_rng_state()
    drawn = generator.coefficients_of_edges(num_edges, z, None)
    for given_coefficients in (None, torch.rand(num_edges, SIZE, dtype=torch.float64)):
        dense = to_dense(drawn.double() if given_coefficients is None else given_coefficients, len(y))
        expected = interpolated(z, y.tolist(), dense, draws, math.exp(-4.0 / level), num_anchors)
        torch.random.set_rng_state(state)
        check_against(
            generate(generator, z, y, num_anchors, level, draws=draws, coefficients=given_coefficients), expected, z
        )


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_draws_are_zero_or_one_with_the_probability(probability):
    torch.manual_seed(0)
    generator = RandomGenerator(NUM_CLASSES, 40, probability=probability)
    drawn = generator.coefficients_of_edges(2000, torch.zeros(3, 40), None)
    assert drawn.dtype == torch.bool
    assert drawn.shape == (2000, 40)
    rate = drawn.double()
    assert rate.mean().item() == pytest.approx(probability, abs=0.01)
    assert (rate.mean(dim=0) - probability).abs().max() < 0.05  # in each channel
    if 0 < probability < 1:
        assert rate.mean(dim=1).unique().numel() > 5  # and not in all channels alike


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_draws_are_constants(probability):
    z, y = random_rows(9), torch.arange(9) % 3
    draws = torch.rand(9, 9, dtype=torch.float64)
    made = (
        RandomGenerator(NUM_CLASSES, SIZE, probability=probability),
        ConstantGenerator(NUM_CLASSES, SIZE, coefficient=probability),
    )
    random, constant = (generate(generator, z, y, 9, 2.0, draws=draws) for generator in made)
    torch.testing.assert_close(random.embeddings, constant.embeddings)


def test_each_batch_is_drawn_anew_and_follows_the_seed():
    z, y, draws = random_rows(9), torch.arange(9) % 3, torch.full((9, 9), 0.5, dtype=torch.float64)
    generator = RandomGenerator(NUM_CLASSES, SIZE)
    torch.manual_seed(1)
    first, second = (generate(generator, z, y, 9, 1.0, draws=draws).embeddings for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(generate(generator, z, y, 9, 1.0, draws=draws).embeddings, first)
    assert not torch.equal(first, second)


def test_merging_is_handed_on():
    y, z = torch.tensor([0, 1, 1, 0, 2, 2, 2]), random_rows(7).detach()
    negatives = RandomGenerator(NUM_CLASSES, SIZE, probability=1, alpha=0, merging="mean")(z, y)
    for label, row in zip(negatives.labels, negatives.embeddings, strict=True):
        torch.testing.assert_close(row, z[y == label].mean(dim=0))


def test_coefficients_are_0_or_1_and_symmetric():
    generator = RandomGenerator(5, 8, alpha=0.0, merging="mean")
    z = random_rows(7).detach()
    z = torch.cat([z[:1], z[:1] + 0.1, z[2:]])  # positives are nearer than negatives
    seen = set()
    for _ in range(20):
        y_pairs = torch.tensor([0, 0, 1, 2, 3, 4, 1])  # of classes 2 to 4 one candidate each
        found = generator(z, y_pairs, None, 2.0)
        for anchor, label, row in zip(found.anchors.tolist(), found.labels.tolist(), found.embeddings, strict=True):
            if label < 2 or anchor > 1:
                continue
            negative = z[y_pairs.tolist().index(label)]
            near, far = (z[0] - z[1]).norm(), (z[anchor] - negative).norm()
            if near < far:
                ratio = (row - z[anchor]) / (negative - z[anchor])
                seen |= {round(value, 9) for value in ((ratio - near / far) / (1 - near / far)).tolist()}
    assert seen <= {0.0, 1.0, -0.0}
    assert {0.0, 1.0} <= seen

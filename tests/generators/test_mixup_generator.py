import pytest
import torch
from helpers.compared import (
    NUM_CLASSES,
    SIZE,
    anchor_rows,
    check_against,
    generate,
    negative_pairs,
    positives_of,
    random_rows,
)
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.generators import MixupGenerator
from pml_gca.generators.mixup_generator import draw_steps
from pml_gca.generators.planning import plan_negative_pairs


def norm(x):
    return torch.sqrt((x**2).sum())


def mixed(p, n, share, normalize):
    if not normalize:
        return share * p + (1 - share) * n
    v = share * p / norm(p) + (1 - share) * n / norm(n)
    return v / norm(v) * (share * norm(p) + (1 - share) * norm(n))


@settings(max_examples=15)
@given(labels(max_classes=6, max_samples=4), st.booleans(), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, normalize, seed, data):
    num_anchors, names = data.draw(st.integers(0, len(y))), y.tolist()
    generator, z = MixupGenerator(NUM_CLASSES, SIZE, normalize=normalize), random_rows(len(y), seed)
    pairs = negative_pairs(names, num_anchors)
    torch.manual_seed(seed)
    shares = torch.rand(len(pairs), dtype=torch.float64)
    steps = [int(torch.randint(len(positives_of(names, i)), ())) for i, _ in pairs]
    rows = anchor_rows(z, num_anchors)
    expected = [
        (i, names[j], mixed(rows[positives_of(names, i)[step]], rows[j], share, normalize))
        for (i, j), share, step in zip(pairs, shares, steps, strict=True)
    ]
    steps = torch.tensor(steps, dtype=torch.long)
    negatives = generate(generator, z, y, num_anchors, 1.0, shares=shares, steps=steps)
    check_against(negatives, expected, z)


@settings(max_examples=15)
@given(labels(max_samples=2), st.data())
def test_permuting_the_batch_permutes_the_negatives(y, data):
    """With two samples a class at most, an anchor has one positive."""
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    generator, z = MixupGenerator(NUM_CLASSES, SIZE), random_rows(len(y))
    pairs, moved = negative_pairs(y.tolist(), len(y)), negative_pairs(y[order].tolist(), len(y))
    shares, none = torch.rand(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.long)
    before = generate(generator, z, y, len(y), 1.0, shares=shares, steps=none)
    wanted = dict(zip(pairs, zip(before.embeddings, shares, strict=True), strict=True))
    moved = [(order[i].item(), order[j].item()) for i, j in moved]
    shares = torch.tensor([wanted[pair][1] for pair in moved], dtype=torch.float64)
    after = generate(generator, z[order], y[order], len(y), 1.0, shares=shares, steps=none)
    for pair, row in zip(moved, after.embeddings, strict=True):
        torch.testing.assert_close(row, wanted[pair][0])


def moments(concentration):
    """Mean and variance of Beta(a, a + 1)."""
    a, b = concentration, concentration + 1
    return a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)


@pytest.mark.parametrize("concentration", [0.5, 2, 8.0])
def test_the_draws_are_those_of_beta_times_the_weight_of_a_negative(concentration):
    torch.manual_seed(0)
    generator = MixupGenerator(2, 1, concentration=concentration, normalize=False)
    z = torch.cat([torch.ones(100, 1, dtype=torch.float64), torch.zeros(100, 1, dtype=torch.float64)])
    y = torch.arange(200) // 100
    negatives = generator(z, y)  # between 0 and 1, a mixture is its share, or 1 less it
    shares = torch.where(negatives.labels == 1, negatives.embeddings[:, 0], 1 - negatives.embeddings[:, 0])
    assert len(shares) == 2 * 100 * 100
    mean, variance = moments(concentration)
    assert shares.mean().item() == pytest.approx(mean, abs=0.008)
    assert shares.var().item() == pytest.approx(variance, rel=0.05)
    # The weighted sum of Metrix: E[f(λ)(1 − λ)] under Beta(a, a), twice.
    drawn = torch.distributions.Beta(*torch.full((2,), float(concentration), dtype=torch.float64)).sample((200_000,))
    expected = (2 * (1 - drawn) * drawn.exp()).mean().item()
    assert shares.exp().mean().item() == pytest.approx(expected, rel=0.01)


def test_each_positive_is_drawn_equally_often():
    torch.manual_seed(0)
    y = torch.tensor([1, 0, 0, 1, 0, 1, 2, 1] + [2] * 2000)
    plan = plan_negative_pairs(y, 3)
    found = plan.positives_after(draw_steps(plan))
    for i in (0, 1, 2):
        positives = positives_of(y.tolist(), i)
        drawn = found[plan.anchors == i].tolist()
        assert set(drawn) == set(positives)
        for p in positives:
            assert drawn.count(p) / len(drawn) == pytest.approx(1 / len(positives), abs=0.05)


def test_the_highest_draw_is_a_positive(monkeypatch):
    plan = plan_negative_pairs(torch.tensor([0, 0, 0, 0, 1]), 4)
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.ones(*size, dtype=torch.float64))
    assert draw_steps(plan).tolist() == [2] * 4


def test_draws_follow_the_seed():
    generator, z, y = MixupGenerator(NUM_CLASSES, SIZE), random_rows(9), torch.arange(9) % 3
    rows = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        rows.append(generator(z, y).embeddings)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])

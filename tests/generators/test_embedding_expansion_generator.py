from itertools import combinations

import pytest
import torch
from helpers.compared import NUM_CLASSES, SIZE, anchor_rows, check_against, positives_of, random_rows
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.generators import EmbeddingExpansionGenerator
from pml_gca.generators.directions import mix
from pml_gca.generators.hardest_negative_generator import nearest_of_each_class


def norm(x):
    return torch.sqrt((x**2).sum())


def point(x, other, k, n, normalize):
    if not normalize:
        return (k * other + (n + 1 - k) * x) / (n + 1)
    v = (k * other / norm(other) + (n + 1 - k) * x / norm(x)) / (n + 1)
    return v / norm(v) * (k * norm(other) + (n + 1 - k) * norm(x)) / (n + 1)


def hardest(z, y, num_anchors, n, normalize):
    """[(anchor, label, negative)] by the paper's equations."""
    rows, out = anchor_rows(z, num_anchors), []
    for i in (i for i in range(num_anchors) if positives_of(y, i)):
        for label in sorted(set(y) - {y[i]}):
            members = [row for row, name in zip(rows, y, strict=True) if name == label]
            points = members + [
                point(x, other, k, n, normalize) for x, other in combinations(members, 2) for k in range(1, n + 1)
            ]
            far = [norm(rows[i] / norm(rows[i]) - x / norm(x)) if normalize else norm(rows[i] - x) for x in points]
            out.append((i, label, points[far.index(min(far))]))
    return out


@settings(max_examples=25)
@given(labels(max_classes=6, max_samples=4), st.integers(1, 3), st.booleans(), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, num_points, normalize, seed, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    generator = EmbeddingExpansionGenerator(NUM_CLASSES, SIZE, num_points=num_points, normalize=normalize)
    z = random_rows(len(y), seed)
    check_against(generator(z, y, num_anchors), hardest(z, y.tolist(), num_anchors, num_points, normalize), z)


@settings(max_examples=15)
@given(labels(max_classes=6), st.booleans(), st.data())
def test_permuting_the_batch_permutes_the_negatives(y, normalize, data):
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    generator, z = EmbeddingExpansionGenerator(NUM_CLASSES, SIZE, normalize=normalize), random_rows(len(y))
    before, after = generator(z, y), generator(z[order], y[order])
    wanted = {
        (i, label): row
        for i, label, row in zip(before.anchors.tolist(), before.labels.tolist(), before.embeddings, strict=True)
    }
    assert len(after) == len(wanted)
    for i, label, row in zip(after.anchors.tolist(), after.labels.tolist(), after.embeddings, strict=True):
        torch.testing.assert_close(row, wanted[order[i].item(), label])


def test_points_between_two_samples():
    """A right angle divided in three, seen from an anchor that is nearest to the first third."""
    anchor = torch.tensor([0.9, 0.4])
    z = torch.stack([anchor, anchor, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])])
    y = torch.tensor([0, 0, 1, 1])
    direction = torch.tensor([2.0, 1.0]) / 5**0.5
    torch.testing.assert_close(EmbeddingExpansionGenerator(2, 2)(z, y).embeddings[0], direction * 5 / 3)
    torch.testing.assert_close(
        EmbeddingExpansionGenerator(2, 2, normalize=False)(z, y).embeddings[0], torch.tensor([2 / 3, 2 / 3])
    )


def test_unit_embeddings_give_unit_negatives_and_scaled_ones_the_same_directions():
    z, y = random_rows(12), torch.arange(12) % 4
    unit = z.detach() / z.detach().norm(dim=1, keepdim=True)
    made = EmbeddingExpansionGenerator(NUM_CLASSES, SIZE)(unit, y).embeddings
    torch.testing.assert_close(made.norm(dim=1), torch.ones(len(made), dtype=z.dtype))
    scaled = EmbeddingExpansionGenerator(NUM_CLASSES, SIZE)(7 * unit, y).embeddings
    torch.testing.assert_close(scaled, 7 * made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opposite_samples_have_no_direction_between_them(dtype):
    """What rounding leaves of one is not taken for a direction, which would have a huge gradient."""
    first = torch.randn(200, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    second = (-first.detach() * torch.linspace(0.3, 7, 200, dtype=dtype)[:, None]).requires_grad_()
    middle = mix(first, second, first.new_full((1, 1), 0.5), normalize=True)
    assert not middle.any()
    middle.sum().backward()
    assert not first.grad.any()
    assert not second.grad.any()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_nearest_of_each_class_however_many_are_compared_at_a_time(normalize, monkeypatch):
    """Equally near points: the first one counts."""
    anchors, points = random_rows(5).detach(), random_rows(7, seed=1).detach()
    points[4] = points[1]
    class_of = torch.tensor([0, 2, 1, 0, 2, 2, 1])
    found = nearest_of_each_class(anchors, points, class_of, 3, normalize)
    monkeypatch.setattr("pml_gca.generators.hardest_negative_generator.COMPARED_VALUES", 15)
    assert torch.equal(nearest_of_each_class(anchors, points, class_of, 3, normalize), found)
    assert not (found == 4).any()
    for i, row in enumerate(found.tolist()):
        for c, j in enumerate(row):
            assert class_of[j] == c
            far = [
                norm(anchors[i] / norm(anchors[i]) - x / norm(x)) if normalize else norm(anchors[i] - x) for x in points
            ]
            assert far[j] == min(d for d, name in zip(far, class_of, strict=True) if name == c)

from itertools import permutations

import torch
from helpers.compared import NUM_CLASSES, SIZE, anchor_rows, check_against, positives_of, random_rows
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.generators import SymmetricalSynthesisGenerator
from pml_gca.generators.directions import reflect


def norm(x):
    return torch.sqrt((x**2).sum())


def mirrored(p, a):
    u = a / norm(a)
    return 2 * (p @ u) * u - p


def hardest(z, y, num_anchors, normalize):
    """[(anchor, label, negative)] by the paper's equations."""
    rows, out = anchor_rows(z, num_anchors), []
    for i in (i for i in range(num_anchors) if positives_of(y, i)):
        for label in sorted(set(y) - {y[i]}):
            members = [row for row, name in zip(rows, y, strict=True) if name == label]
            points = members + [mirrored(p, a) for p, a in permutations(members, 2)]
            far = [-rows[i] @ x / norm(rows[i]) / norm(x) if normalize else norm(rows[i] - x) for x in points]
            out.append((i, label, points[far.index(min(far))]))
    return out


@settings(max_examples=25)
@given(labels(max_classes=6, max_samples=4), st.booleans(), st.integers(0, 99), st.data())
def test_negatives_agree_with_the_slow_oracle(y, normalize, seed, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    generator = SymmetricalSynthesisGenerator(NUM_CLASSES, SIZE, normalize=normalize)
    z = random_rows(len(y), seed)
    check_against(generator(z, y, num_anchors), hardest(z, y.tolist(), num_anchors, normalize), z)


@settings(max_examples=15)
@given(labels(max_classes=6), st.booleans(), st.data())
def test_permuting_the_batch_permutes_the_negatives(y, normalize, data):
    order = torch.tensor(data.draw(st.permutations(range(len(y)))))
    generator, z = SymmetricalSynthesisGenerator(NUM_CLASSES, SIZE, normalize=normalize), random_rows(len(y))
    before, after = generator(z, y), generator(z[order], y[order])
    wanted = {
        (i, label): row
        for i, label, row in zip(before.anchors.tolist(), before.labels.tolist(), before.embeddings, strict=True)
    }
    assert len(after) == len(wanted)
    for i, label, row in zip(after.anchors.tolist(), after.labels.tolist(), after.embeddings, strict=True):
        torch.testing.assert_close(row, wanted[order[i].item(), label])


def test_mirroring_keeps_lengths_and_angles_and_is_undone_by_itself():
    points, axes = random_rows(20).detach(), random_rows(20, seed=1).detach()
    made = reflect(points, axes)
    torch.testing.assert_close(made.norm(dim=1), points.norm(dim=1))
    torch.testing.assert_close((made * axes).sum(dim=1), (points * axes).sum(dim=1))
    torch.testing.assert_close(reflect(made, axes), points)
    torch.testing.assert_close(reflect(points, -3 * axes), made)


def test_the_zero_vector_is_no_axis():
    points, axes = random_rows(3), torch.zeros(3, SIZE, dtype=torch.float64, requires_grad=True)
    made = reflect(points, axes)
    assert torch.equal(made, points)
    made.sum().backward()
    assert torch.equal(points.grad, torch.ones_like(points))
    assert not axes.grad.any()


def test_a_mirrored_point_beyond_the_axis_is_the_hardest():
    y = torch.tensor([0, 0, 1, 1])
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 2.0]])
    torch.testing.assert_close(SymmetricalSynthesisGenerator(2, 2)(z, y).embeddings[0], torch.tensor([2.0, 0.5]))

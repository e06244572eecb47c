"""A memory of all training classes."""

import pytest
import torch
from comparison.class_memory import MOMENTUM, ClassMemory, PrototypeGenerator
from torch.nn.functional import cosine_similarity

CLASSES, SIZE = 7, 5


def test_prototypes_are_moving_averages():
    torch.manual_seed(0)
    memory, expected = ClassMemory(CLASSES, SIZE), {}
    for labels in ([0, 0, 2], [2, 3, 3], [0, 2, 2]):
        embeddings = torch.randn(3, SIZE)
        memory.update(embeddings, torch.tensor(labels))
        for label in set(labels):
            mean = torch.stack([e for e, y in zip(embeddings, labels, strict=True) if y == label]).mean(dim=0)
            before = expected.get(label, mean)
            expected[label] = MOMENTUM * before + (1 - MOMENTUM) * mean
    assert memory.seen.nonzero()[:, 0].tolist() == sorted(expected) == [0, 2, 3]
    for label in range(CLASSES):
        torch.testing.assert_close(memory.means[label], expected.get(label, torch.zeros(SIZE)))


@pytest.mark.parametrize(("count", "size"), [(6, 3), (6, 2), (5, 3), (7, 1)])
def test_groups_are_a_class_and_those_nearest_to_it(count, size):
    torch.manual_seed(0)
    memory = ClassMemory(CLASSES, SIZE)
    memory.update(torch.randn(CLASSES, SIZE), torch.arange(CLASSES))
    order = torch.randperm(CLASSES)
    chosen = []
    for start in order.tolist():
        if start not in chosen:
            chosen.append(start)
            for _ in range(size - 1):
                left = [c for c in range(CLASSES) if c not in chosen]
                alike = [cosine_similarity(memory.means[start], memory.means[c], dim=0) for c in left]
                chosen += [left[max(range(len(left)), key=alike.__getitem__)]] if left else []
    assert memory.nearest_groups(order, count, size).tolist() == chosen[:count]


def test_an_empty_memory_leaves_the_order():
    order = torch.randperm(CLASSES)
    assert ClassMemory(CLASSES, SIZE).nearest_groups(order, 6, 3).tolist() == order[:6].tolist()


@pytest.mark.parametrize("count", [1, 3, 26])
@pytest.mark.parametrize("hardest", [True, False])
def test_negatives_are_prototypes_of_other_classes(count, hardest):
    torch.manual_seed(0)
    generator = PrototypeGenerator(CLASSES, SIZE, count=count, hardest=hardest)
    generator(torch.randn(8, SIZE), torch.tensor([0, 0, 1, 1, 2, 2, 5, 5]))
    embeddings, labels = torch.randn(5, SIZE), torch.tensor([0, 3, 3, 0, 5])
    found = generator(embeddings, labels)
    means, seen = generator.memory.means, [0, 1, 2, 3, 5]
    assert found.anchors.tolist() == [i for i in range(4) for _ in range(min(count, 4))]  # the last has no positive
    assert found.num_skipped_anchors == 1
    torch.testing.assert_close(found.embeddings, means[found.labels])
    assert not found.embeddings.requires_grad
    for i in range(4):
        mine = found.labels[found.anchors == i].tolist()
        others = [c for c in seen if c != labels[i]]
        alike = {c: cosine_similarity(embeddings[i], means[c], dim=0).item() for c in others}
        if hardest:
            assert mine == sorted(others, key=lambda c: -alike[c])[:count]
        else:
            assert len(set(mine)) == len(mine)
            assert set(mine) <= set(others)

import pytest
import torch
from helpers.compared import NUM_CLASSES, SIZE, check_against, generate, positives_of, random_rows
from helpers.counters import LiveBytes
from helpers.strategies import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from pml_gca.generators import ConstantGenerator, HardestNegativeGenerator


@settings(max_examples=25)
@given(labels(max_samples=4), st.booleans(), st.integers(0, 99), st.data())
def test_negatives_agree_with_a_slow_search(y, normalize, seed, data):
    num_anchors = data.draw(st.integers(0, len(y)))
    z, names = random_rows(len(y), seed), y.tolist()
    expected = []
    for i in (i for i in range(num_anchors) if positives_of(names, i)):
        for label in sorted(set(names) - {names[i]}):
            members = [j for j in range(len(y)) if names[j] == label]
            near = [torch.cosine_similarity(z[i], z[j], dim=0) if normalize else -(z[i] - z[j]).norm() for j in members]
            hardest = members[max(range(len(members)), key=lambda k: near[k].item())]
            expected.append((i, label, z[hardest] if hardest < num_anchors else z[hardest].detach()))
    generator = HardestNegativeGenerator(NUM_CLASSES, SIZE, normalize=normalize)
    check_against(generate(generator, z, y, num_anchors), expected, z)


@settings(max_examples=15)
@given(labels(max_samples=4), st.integers(0, 99))
def test_negatives_equal_those_of_constant_1_merged_by_hardness(y, seed):
    z = random_rows(len(y), seed)
    constant = ConstantGenerator(NUM_CLASSES, SIZE, coefficient=1.0, alpha=0.0, merging="hardest")
    found = [generate(g, z, y, level=2.0) for g in (HardestNegativeGenerator(NUM_CLASSES, SIZE), constant)]
    assert found[0].anchors.tolist() == found[1].anchors.tolist()
    assert found[0].labels.tolist() == found[1].labels.tolist()
    torch.testing.assert_close(found[0].embeddings, found[1].embeddings)
    pick = torch.randn_like(found[0].embeddings)
    gradients = [torch.autograd.grad((made.embeddings * pick).sum() + 0 * z.sum(), z) for made in found]
    torch.testing.assert_close(*gradients)


def test_of_equally_near_samples_the_first_is_taken():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    negatives = HardestNegativeGenerator(3, 2)(z, torch.tensor([0, 0, 1, 1, 1]))
    assert negatives.embeddings[:2].tolist() == [[0.0, 1.0]] * 2


def test_pairs_within_a_class_take_no_memory():
    """Two classes of 128 samples have 16,256 pairs."""
    z, y = torch.randn(256, 64), torch.arange(256) % 2
    generator = HardestNegativeGenerator(3, 64)
    with LiveBytes() as live:
        generator(z, y)
    assert live.peak < 16_256 * 64 * 4


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_bad_arguments(value):
    with pytest.raises(TypeError, match="normalize must be a bool"):
        HardestNegativeGenerator(3, 8, normalize=value)

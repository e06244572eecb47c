import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.samplers import MPerClassSampler

from pml_gca.paper import MPerClassCoveringSampler


def batches(sampler, size):
    rows = list(sampler)
    assert len(rows) == len(sampler)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


@st.composite
def data_sets(draw):
    """Labels in any order and with gaps, M, and classes of a batch."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    labels = [7 * label - 3 for label, size in enumerate(sizes) for _ in range(size)]
    return draw(st.permutations(labels)), draw(st.integers(1, 4)), draw(st.integers(1, len(sizes)))


@given(data_sets(), st.integers(0, 3), st.integers(1, 7))
def test_every_sample_of_a_class_comes_once_before_any_repeats(data, seed, num_batches):
    labels, m, classes = data
    size = m * classes
    sampler = MPerClassCoveringSampler(torch.tensor(labels), m, size, num_batches * size + size - 1, seed=seed)
    assert len(sampler) == num_batches * size
    members = {label: {i for i, own in enumerate(labels) if own == label} for label in labels}
    drawn = {label: [] for label in members}
    for batch in (batch for _ in range(3) for batch in batches(sampler, size)):  # of three epochs
        groups = [batch[i : i + m] for i in range(0, size, m)]
        found = [{labels[row] for row in group} for group in groups]
        assert all(len(group) == 1 for group in found)
        assert len(set.union(*found)) == classes
        for group in groups:
            label = labels[group[0]]
            assert len(set(group)) == min(m, len(members[label]))
            drawn[label] += group
    for label, rows in drawn.items():
        n = len(members[label])
        for start in range(0, len(rows) - n + 1, n):
            assert set(rows[start : start + n]) == members[label]


def test_draws_depend_only_on_the_seed():
    labels = torch.arange(40) % 8
    state = torch.get_rng_state()
    make = [MPerClassCoveringSampler(labels, 2, 8, 40, seed=seed) for seed in (5, 5, 6)]
    first, second, other = map(list, make)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second != other
    assert list(make[0]) == list(make[1]) != first  # the next epoch is another


def test_a_sampler_continues_where_another_stopped(tmp_path):
    labels = np.arange(50) % 7
    one = MPerClassCoveringSampler(labels, 3, 12, 48, seed=1)
    list(one)
    torch.save(one.state_dict(), tmp_path / "state")
    expected = [list(one) for _ in range(3)]
    other = MPerClassCoveringSampler(labels, 3, 12, 48, seed=2)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert [list(other) for _ in range(3)] == expected
    for unlike in (np.arange(50) % 8, np.arange(50) % 7 // 2 * 2, np.arange(50)[::-1] % 7):
        with pytest.raises(ValueError, match="the state belongs to a sampler of other labels"):
            MPerClassCoveringSampler(unlike, 3, 6, 48).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "kind", ["uint8", "uint16", "uint32", "uint64", "int64", "float32", "reversed", "text", "list"]
)
def test_labels_of_any_kind(kind):
    labels = np.arange(30) % 5
    expected = list(MPerClassCoveringSampler(torch.tensor(labels), 2, 6, 24))
    given = {"reversed": labels[::-1].copy()[::-1], "text": labels.astype(str), "list": labels.tolist()}
    sampler = MPerClassCoveringSampler(given[kind] if kind in given else labels.astype(kind), 2, 6, 24)
    assert list(sampler) == expected


def test_it_draws_on_the_host_with_any_default_device():
    labels = np.arange(30) % 5
    expected = list(MPerClassCoveringSampler(labels, 2, 6, 24, seed=np.int64(3)))
    with torch.device("meta"):
        sampler = MPerClassCoveringSampler(labels, 2, 6, 24, seed=3)
        assert list(sampler) == expected
        assert {value.device.type for value in sampler.state_dict().values()} == {"cpu"}


def test_labels_keep_their_identity():
    large = 2**53 + np.arange(12) // 4
    batch = list(MPerClassCoveringSampler(large, 4, 12, 12))
    assert sorted(batch) == list(range(12))


CUB = [60] * 64 + [59] * 18 + [57] * 10 + [41] * 8, 27, 3  # images of each class, classes, images of each
SOP = [n for n, count in enumerate((0, 0, 6, 12, 20, 24, 16, 9, 5, 3, 2, 1, 2)) for _ in range(count)], 4, 2


def share_seen(sizes, rows):
    return len(set(rows)) / sum(sizes)


def expected_shares(sizes, classes, m, num_batches):
    """Shares of images in an epoch, computed by hand: with orders that are used up, and with independent batches."""
    chance = classes / len(sizes)
    used_up = anew = 0.0
    for k in range(num_batches + 1):
        probability = math.comb(num_batches, k) * chance**k * (1 - chance) ** (num_batches - k)
        for n in sizes:
            used_up += probability * min(k * m, n)
            anew += probability * n * (1 - (1 - min(m, n) / n) ** k)
    return used_up / sum(sizes), anew / sum(sizes)


@pytest.mark.parametrize(("sizes", "classes", "m"), [CUB, SOP], ids=["cub", "sop"])
def test_an_epoch_covers_as_many_images_as_possible(sizes, classes, m):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    size = classes * m
    num_batches = len(labels) // size
    ours = [share_seen(sizes, MPerClassCoveringSampler(labels, m, size, len(labels), seed=seed)) for seed in range(20)]
    np.random.seed(0)  # noqa: NPY002 - PML's sampler draws from it
    pml = [share_seen(sizes, MPerClassSampler(labels, m, size, len(labels))) for _ in range(20)]
    covered, anew = expected_shares(sizes, classes, m, num_batches)
    assert np.mean(ours) == pytest.approx(covered, abs=0.01)
    assert np.mean(pml) == pytest.approx(anew, abs=0.01)
    assert covered == pytest.approx({27: 0.91, 4: 0.72}[classes], abs=0.01)
    assert anew == pytest.approx({27: 0.63, 4: 0.61}[classes], abs=0.01)


def test_images_left_out_of_an_epoch_come_in_the_next():
    labels = np.repeat(np.arange(10), 6)
    sampler = MPerClassCoveringSampler(labels, 2, 20, 20)  # all classes, 2 of 6 images
    epochs = [set(sampler) for _ in range(3)]
    assert [len(rows) for rows in epochs] == [20, 20, 20]
    assert not any(a & b for a, b in itertools.combinations(epochs, 2))


def test_bad_labels():
    with pytest.raises(ValueError, match=r"labels must be 1-D, one of each sample, got 2-D, shape \(4, 1\)"):
        MPerClassCoveringSampler(torch.zeros(4, 1), 2, 2, 2)
    with pytest.raises(TypeError, match="labels must be numbers or names, all of one kind: '<' not supported"):
        MPerClassCoveringSampler([0, None, 0, None], 2, 4, 4)
    with pytest.raises(ValueError, match="batch_size must be at most 0, 2 samples of each of 0 classes, got 2"):
        MPerClassCoveringSampler([], 2, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 4, 8), {}, ValueError, "m must be at least 1, got 0"),
        ((2.0, 4, 8), {}, TypeError, "m must be an integer, got float"),
        ((2, 5, 8), {}, ValueError, "batch_size must be a multiple of m, 2, got 5"),
        ((2, 8, 8), {}, ValueError, "batch_size must be at most 6, 2 samples of each of 3 classes, got 8"),
        ((2, 4, 3), {}, ValueError, "length_before_new_iter must be at least one batch of 4, got 3"),
        ((2, 4, 8), {"seed": None}, TypeError, "seed must be an integer, got NoneType"),
        ((2, 4, 8), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(sizes, options, error, message):
    with pytest.raises(error, match=message):
        MPerClassCoveringSampler([0, 0, 1, 1, 2], *sizes, **options)

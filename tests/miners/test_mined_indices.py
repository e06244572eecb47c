"""Mined indices equal a slow oracle's, with references too, and PML's losses accept them."""

import itertools

import pytest
import torch
from helpers.mining import (
    COMPOSITIONS,
    GENERATOR,
    OUTPUTS,
    D,
    assert_mined,
    batch,
    couples,
    miner_of,
    positives_of,
    slow_negatives,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses


@given(labels=COMPOSITIONS, count=st.integers(1, 20), output=st.sampled_from(OUTPUTS), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_against_a_slow_oracle(labels, count, output, seed):
    embeddings, labels = batch(labels, seed)
    mined = miner_of(count, output)(embeddings, labels)
    positives = positives_of(labels, labels, lambda i, j: i == j)
    assert_mined(mined, output, positives, slow_negatives(GENERATOR, embeddings, labels, count))


@given(labels=COMPOSITIONS, ref_labels=COMPOSITIONS, count=st.integers(1, 20), output=st.sampled_from(OUTPUTS))
@settings(max_examples=30, deadline=None)
def test_references_against_a_slow_oracle(labels, ref_labels, count, output):
    (embeddings, labels), (ref_emb, ref_labels) = batch(labels), batch(ref_labels, seed=1)
    mined = miner_of(count, output)(embeddings, labels, ref_emb, ref_labels)
    positives = positives_of(labels, ref_labels, lambda i, j: False)
    negatives = slow_negatives(GENERATOR, embeddings, labels, count, ref_emb, ref_labels)
    assert_mined(mined, output, positives, negatives)


def test_the_hardest_are_mined_first():
    """A larger count adds negatives; a large enough count gives all of them."""
    embeddings, labels = batch([0, 0, 1, 1, 2, 3, 3, 4])
    mined = [set(couples(*miner_of(k, "pairs")(embeddings, labels)[2:])) for k in range(1, 9)]
    assert all(fewer <= more for fewer, more in itertools.pairwise(mined))
    different = {(i, j) for i in range(8) for j in range(8) if labels[i] != labels[j]}
    assert mined[6] == mined[7] == different


DEGENERATE = {
    "one class": [3, 3, 3, 3],
    "singletons": [0, 1, 2, 3],
    "one sample": [5],
    "empty": [],
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("composition", DEGENERATE)
@pytest.mark.parametrize("with_references", [False, True])
def test_degenerate_batches(output, composition, with_references):
    embeddings, labels = batch(DEGENERATE[composition])
    embeddings.requires_grad_()
    references = (embeddings.detach().clone(), labels.clone()) if with_references else ()
    mined = miner_of(2, output)(embeddings, labels, *references)
    assert all(t.dtype == torch.long for t in mined)
    if output == "triplets":
        assert [len(t) for t in mined] == [0, 0, 0]
    else:
        pairs = {"one class": [12, 12, 0, 0], "singletons": [0, 0, 8, 8]}.get(composition, [0, 0, 0, 0])
        assert [len(t) for t in mined] == pairs
    for loss in (losses.TripletMarginLoss(), losses.ContrastiveLoss(), losses.MultiSimilarityLoss()):
        value = loss(embeddings, labels, mined, *references)
        value.backward()
        assert torch.isfinite(value)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_empty_set_of_references(output):
    embeddings, labels = batch([0, 0, 1])
    mined = miner_of(2, output)(embeddings, labels, embeddings[:0], labels[:0])
    assert all(t.dtype == torch.long and len(t) == 0 for t in mined)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("wrapped", [losses.TripletMarginLoss, losses.ContrastiveLoss, losses.NTXentLoss])
def test_pml_losses_take_what_is_mined(output, wrapped):
    embeddings, labels = batch([0, 0, 1, 1, 2, 2])
    ref_emb, ref_labels = batch([0, 1, 2, 3], seed=1)
    embeddings.requires_grad_()
    miner = miner_of(2, output)
    for references in ((), (ref_emb, ref_labels)):
        value = wrapped()(embeddings, labels, miner(embeddings, labels, *references), *references)
        value.backward()
        assert torch.isfinite(value)
        assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "label_dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
def test_dtypes(dtype, label_dtype):
    embeddings, labels = batch([0, 0, 1, 1, 2], dtype=torch.float32)
    mined = miner_of(4)(embeddings.to(dtype), labels.to(label_dtype))
    expected = miner_of(4)(embeddings, labels)
    assert all(t.dtype == torch.long for t in mined)
    assert [t.tolist() for t in mined] == [t.tolist() for t in expected]  # as all negatives are mined
    mined = miner_of(4)(embeddings, labels, embeddings.to(dtype), labels.to(label_dtype))
    if dtype in (torch.float32, torch.float64):
        assert [t.tolist() for t in mined] == [t.tolist() for t in expected]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("repeat", ["the same tensor", "a copy", "rotated", "with others", "another dtype"])
def test_a_repeated_batch_never_gives_an_anchor_itself(output, repeat):
    embeddings, labels = batch([0, 0, 1, 2, 2, 2])
    ref_emb, ref_labels, row = embeddings.clone(), labels.clone(), list(range(6))
    if repeat == "the same tensor":
        ref_emb = embeddings
    elif repeat == "rotated":
        ref_emb, ref_labels, row = ref_emb.roll(2, 0), ref_labels.roll(2), [2, 3, 4, 5, 0, 1]
    elif repeat == "with others":
        other, other_labels = batch([0, 1, 3], seed=1)
        ref_emb, ref_labels = torch.cat([other, ref_emb]), torch.cat([other_labels, ref_labels])
        row = [3, 4, 5, 6, 7, 8]
    elif repeat == "another dtype":
        ref_emb = ref_emb.double()
    mined = miner_of(3, output)(embeddings, labels, ref_emb, ref_labels)
    got = set(couples(*mined[:2]))
    assert got == positives_of(labels, ref_labels, lambda i, j: j == row[i])


@pytest.mark.parametrize("output", OUTPUTS)
def test_repeated_batch_mines_the_same_as_the_batch(output):
    """References equal to samples of the batch add no nodes to the graph, as in the loss."""
    embeddings, labels = batch([0, 0, 1, 1, 2, 2, 3, 3, 3, 4])
    miner = miner_of(2, output)
    alone = miner(embeddings, labels)
    repeated = miner(embeddings, labels, embeddings.clone(), labels.clone())
    assert [t.tolist() for t in repeated] == [t.tolist() for t in alone]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("size", [3, 10])
def test_part_of_a_batch_mines_the_same_as_the_whole(output, size):
    """The first anchors mine the same in the whole batch, and alone with the batch as references."""
    torch.manual_seed(2)
    embeddings, labels = torch.randn(40, D), torch.randint(5, (40,))
    miner = miner_of(2, output)
    whole = miner(embeddings, labels)
    split = miner(embeddings[:size], labels[:size], embeddings.clone(), labels.clone())
    starts = (0,) if output == "triplets" else (0, 2)
    for start, stop in zip(starts, (3,) if output == "triplets" else (2, 4), strict=True):
        of_first = whole[start] < size
        assert [t.tolist() for t in split[start:stop]] == [t[of_first].tolist() for t in whole[start:stop]]


def test_equal_samples_are_matched_in_references():
    """Samplers repeat samples of small classes, and the distributed wrapper passes the batch as references."""
    z, labels = batch([0, 1])
    embeddings, labels = torch.cat([z, z]), torch.cat([labels, labels])
    miner = miner_of(3, "pairs")
    for references in ((), (embeddings.clone(), labels.clone()), (embeddings, labels.clone())):
        mined = miner(embeddings, labels, *references)
        assert couples(*mined[:2]) == [(0, 2), (1, 3), (2, 0), (3, 1)]
        assert couples(*mined[2:]) == [(0, 1), (0, 3), (1, 0), (1, 2), (2, 1), (2, 3), (3, 0), (3, 2)]


@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    order=st.randoms(use_true_random=False),
    size=st.integers(1, 10),
    output=st.sampled_from(OUTPUTS),
)
@settings(max_examples=30, deadline=None)
def test_repeated_samples_mine_the_same_in_any_order(rows, order, size, output):
    """References that contain the batch, whole or from its middle, mine the same as the batch."""
    points, point_labels = batch([0, 0, 1, 1, 2])
    embeddings, labels = points[rows], point_labels[rows]
    miner = miner_of(20, output)
    alone = miner(embeddings, labels)
    repeated = miner(embeddings, labels, embeddings.clone(), labels.clone())
    assert [t.tolist() for t in repeated] == [t.tolist() for t in alone]
    head = miner(embeddings[:size], labels[:size], embeddings.clone(), labels.clone())
    for start, stop in ((0, 3),) if output == "triplets" else ((0, 2), (2, 4)):
        of_first = alone[start] < size
        assert [t.tolist() for t in head[start:stop]] == [t[of_first].tolist() for t in alone[start:stop]]
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    mixed = miner(embeddings, labels, embeddings[shuffled], labels[shuffled])
    assert [len(t) for t in mixed] == [len(t) for t in alone]
    assert (
        all((shuffled[p], a) for a, p in couples(*mixed[:2]) if shuffled[p] == a and rows.count(rows[a]) == 1) is True
    )


def test_more_and_fewer_copies_in_references():
    z, labels = batch([0, 1])
    miner = miner_of(9, "pairs")
    twice, both = (torch.cat([z, z]), torch.cat([labels, labels])), (z, labels)
    # An extra copy is a sample of its own: a positive of its anchor, and a negative of the other.
    more = miner(*both, *twice)
    assert couples(*more[:2]) == [(0, 2), (1, 3)]
    assert couples(*more[2:]) == [(0, 1), (0, 3), (1, 0), (1, 2)]
    # The only copy matches the first sample of the batch, and is a positive of the second alone.
    fewer = miner(*twice, *both)
    assert couples(*fewer[:2]) == [(2, 0), (3, 1)]
    assert couples(*fewer[2:]) == [(0, 1), (1, 0), (2, 1), (3, 0)]


def test_other_labels_of_the_batch_itself_are_references():
    embeddings, labels = batch([0, 0, 1, 1])
    other = torch.tensor([0, 1, 1, 0])
    mined = miner_of(4, "pairs")(embeddings, labels, embeddings, other)
    copied = miner_of(4, "pairs")(embeddings, labels, embeddings.clone(), other)
    assert [t.tolist() for t in mined] == [t.tolist() for t in copied]

"""Mined indices equal a slow oracle's, and PML's losses accept them."""

import itertools

import pytest
import torch
from helpers.mining import (
    COMPOSITIONS,
    GENERATOR,
    OUTPUTS,
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

"""Bad input raises and changes nothing; degenerate input gives a finite loss with a graph."""

import math
import re

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, reducers

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.losses import CrossBatchMemory

NUM_CLASSES, SIZE = 9, 8
LABELS = torch.tensor([3, 7, 3, 0, 0, 7])


def generator_of(**kwargs):
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, **kwargs)


def make_loss(wrapped=None, **kwargs):
    return HardNegativeGenerationLoss(wrapped or losses.MultiSimilarityLoss(), generator_of(), **kwargs)


def with_values(*values):
    z = torch.randn(6, SIZE)
    z.view(-1)[: len(values)] = torch.tensor(values)
    return z


def unsigned(first):
    """Return labels from `first` on, in the narrowest unsigned dtype."""
    dtype = next(d for d in (np.uint16, np.uint32, np.uint64) if first + 7 <= np.iinfo(d).max)
    return torch.from_numpy(LABELS.numpy().astype(dtype) + dtype(first))


Z = torch.randn(6, SIZE)
BAD_BATCHES = [
    (TypeError, "embeddings must be a torch.Tensor, got list", Z.tolist(), LABELS),
    (TypeError, "embeddings must be floating point, got torch.int64", Z.long(), LABELS),
    (TypeError, "embeddings must be dense, got torch.sparse_coo; pass .to_dense()", Z.to_sparse(), LABELS),
    (TypeError, "labels must be dense, got torch.sparse_coo; pass .to_dense()", Z, LABELS.to_sparse()),
    (TypeError, "embeddings must be floating point, got torch.complex64", Z + 0j, LABELS),
    (ValueError, "embeddings must be 2-D (batch_size, embedding_size), got 1-D", Z[0], LABELS),
    (ValueError, "embeddings must be 2-D (batch_size, embedding_size), got 3-D", Z[None], LABELS),
    (ValueError, "embeddings must have 8 channels, the generator's embedding_size, got 7", Z[:, 1:], LABELS),
    (ValueError, "embeddings must be finite, got 2 NaN and 0 infinite of 48", with_values(math.nan, math.nan), LABELS),
    (
        ValueError,
        "embeddings must be finite, got 1 NaN and 2 infinite of 48",
        with_values(math.inf, math.nan, -math.inf),
        LABELS,
    ),
    (TypeError, "labels must be a torch.Tensor, got list", Z, LABELS.tolist()),
    (
        TypeError,
        "labels must be integers, got torch.float32; if its values are class numbers, pass .long()",
        Z,
        LABELS.float(),
    ),
    (TypeError, "labels must be integers, got torch.bool", Z, LABELS.bool()),
    (TypeError, "labels must be integers, got torch.complex64", Z, LABELS + 0j),
    (ValueError, "labels must be as many as embeddings: expected 6, got 5", Z, LABELS[:5]),
    (ValueError, "labels must be 1-D (batch_size,), got 2-D with shape (6, 1)", Z, LABELS[:, None]),
    (ValueError, "labels must be 1-D (batch_size,), got 0-D", Z, LABELS[0]),
    (ValueError, "labels must lie in [0, num_classes) = [0, 9), got values from -1 to 6", Z, LABELS - 1),
    (ValueError, "labels must lie in [0, num_classes) = [0, 9), got values from 2 to 9", Z, LABELS + 2),
    (ValueError, "labels must lie in [0, num_classes) = [0, 9), got values from 60000 to 60007", Z, unsigned(60000)),
    (ValueError, "labels must lie in [0, num_classes) = [0, 9), got values from 2147483648 to", Z, unsigned(2**31)),
    (
        ValueError,
        "labels must lie in [0, num_classes) = [0, 9), got values from 4611686018427387904 to",
        Z,
        unsigned(2**62),
    ),
    (ValueError, "labels must fit into int64, got 18446744073709551615", Z, unsigned(2**64 - 8)),
]


@pytest.mark.parametrize(("error", "message", "z", "labels"), BAD_BATCHES, ids=[row[1][:60] for row in BAD_BATCHES])
def test_bad_batch_raises_and_changes_nothing(error, message, z, labels):
    loss = make_loss()
    loss(Z, LABELS)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    with pytest.raises(error, match="^" + re.escape(message)):
        loss(z, labels)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize(("error", "message", "z", "labels"), BAD_BATCHES, ids=[row[1][:60] for row in BAD_BATCHES])
def test_bad_references_raise_and_change_nothing(error, message, z, labels):
    loss = make_loss(losses.NTXentLoss())
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    message = message.replace("embeddings", "ref_emb", 1) if message.startswith("emb") else f"ref_{message}"
    message = message.replace("as many as embeddings", "as many as ref_emb")
    with pytest.raises(error, match="^" + re.escape(message)):
        loss(Z, LABELS, None, z, labels)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("wrapped", [losses.NPairsLoss, losses.TripletMarginLoss, losses.ArcFaceLoss])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16])
def test_labels_of_any_integer_dtype(dtype, wrapped):
    """Default collation makes uint16 tensors of np.uint16 labels."""
    values = []
    for labels in (LABELS, LABELS.to(dtype)):
        torch.manual_seed(0)
        loss = make_loss(wrapped(NUM_CLASSES, SIZE) if wrapped is losses.ArcFaceLoss else wrapped())
        z = Z.clone().requires_grad_()
        value = loss(z, labels)
        values.append([value, *torch.autograd.grad(value, [z, *loss.parameters()], allow_unused=True)])
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [losses.NPairsLoss, losses.TripletMarginLoss, losses.ArcFaceLoss])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16])
def test_labels_of_any_integer_dtype_in_evaluation(dtype, wrapped):
    """Labels that work in training must work in evaluation; PML's losses take some dtypes only."""
    loss = make_loss(wrapped(NUM_CLASSES, SIZE) if wrapped is losses.ArcFaceLoss else wrapped()).eval()
    assert loss(Z, LABELS.to(dtype)) == loss.loss(Z, LABELS)
    given = LABELS.to(dtype)
    if wrapped is losses.TripletMarginLoss:  # PML detects the batch as its own references by identity of the labels
        assert loss(Z, given, None, Z, given) == loss.loss(Z, LABELS)
        assert loss(Z, given, None, Z, given.clone()) == loss.loss(Z, LABELS, None, Z, LABELS.clone())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_a_memory_takes_labels_of_any_integer_dtype(dtype):
    found = []
    for labels in (LABELS, LABELS.to(dtype)):
        torch.manual_seed(0)
        memory = CrossBatchMemory(make_loss(losses.ContrastiveLoss()), SIZE, memory_size=12)
        found.append((memory(Z, labels), memory(Z + 1, labels)))
    assert found[0] == found[1]


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 100])
def test_labels_out_of_range_mention_how_pml_renumbers(labels):
    with pytest.raises(ValueError, match=r"dataset_labels=.*set_min_label_to_zero=True"):
        make_loss()(Z, labels)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "beta must be a finite number of at least 0, got -1", {"beta": -1}),
        (ValueError, "beta must be a finite number of at least 0, got nan", {"beta": math.nan}),
        (TypeError, "beta must be a number, got str", {"beta": "20"}),
        (ValueError, "level_momentum must be below 1, got 1", {"level_momentum": 1}),
        (ValueError, "level_momentum must be a finite number of at least 0, got -0.5", {"level_momentum": -0.5}),
        (TypeError, "level_momentum must be a number, got bool", {"level_momentum": True}),
        (TypeError, "generator must be a pml_gca generator, got Linear", {"generator": torch.nn.Linear(2, 2)}),
        (TypeError, "generator must be a pml_gca generator, got the class", {"generator": GlobalCorrelationGenerator}),
    ],
)
def test_bad_arguments_are_named(error, message, arguments):
    arguments = {"loss": losses.NPairsLoss(), "generator": generator_of(), **arguments}
    with pytest.raises(error, match="^" + re.escape(message)):
        HardNegativeGenerationLoss(**arguments)


@pytest.mark.parametrize(
    ("message", "wrapped"),
    [
        ("DoNothingReducer", losses.ContrastiveLoss(reducer=reducers.DoNothingReducer())),
        ("DoNothingReducer", losses.MultipleLosses([losses.NCALoss(reducer=reducers.DoNothingReducer())])),
        (
            "DoNothingReducer",
            losses.ContrastiveLoss(reducer=reducers.MultipleReducers({"pos_loss": reducers.DoNothingReducer()})),
        ),
        ("PerAnchorReducer", losses.NTXentLoss(reducer=reducers.PerAnchorReducer())),
        ("PerAnchorReducer", losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer())),
    ],
)
def test_reducers_that_cannot_work_are_refused(message, wrapped):
    with pytest.raises(ValueError, match=message):
        make_loss(wrapped)


ZERO, SAME = torch.zeros(6, SIZE), torch.ones(6, SIZE) * torch.randn(SIZE)
DEGENERATE = {
    "empty": (Z[:0], LABELS[:0], 0),
    "one sample": (Z[:1], LABELS[:1], 0),
    "one class": (Z, LABELS * 0 + 4, 0),
    "singletons": (Z, torch.arange(6), 0),
    "one pair, one singleton": (Z[:3], torch.tensor([1, 1, 2]), 2),
    "all alike": (SAME, LABELS, 12),
    "all alike, one class": (SAME, LABELS * 0, 0),
    "zero vectors": (ZERO, LABELS, 12),
    "a zero vector": (torch.cat([ZERO[:1], Z[1:]]), LABELS, 12),
    "constant channels": (torch.ones(6, SIZE) * torch.arange(1.0, 7.0)[:, None], LABELS, 12),
    "duplicates": (torch.cat([Z[:1], Z[:1], Z[:1], Z[3:]]), LABELS, 12),
    "tiny": (Z * 1e-20, LABELS, 12),
    "large": (Z * 1e12, LABELS, 12),
}
WRAPPED = {
    "angular": losses.AngularLoss,
    "contrastive": losses.ContrastiveLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "n-pairs": losses.NPairsLoss,
    "nca": losses.NCALoss,
    "nt-xent": losses.NTXentLoss,
    "proxy anchor": lambda: losses.ProxyAnchorLoss(NUM_CLASSES, SIZE),
    "tcm": losses.ThresholdConsistentMarginLoss,
    "triplet": losses.TripletMarginLoss,
}


@pytest.mark.parametrize("wrapped", sorted(WRAPPED))
@pytest.mark.parametrize("batch", sorted(DEGENERATE))
def test_a_degenerate_batch_gives_a_finite_loss_with_a_graph(batch, wrapped):
    z, labels, count = DEGENERATE[batch]
    loss = make_loss(WRAPPED[wrapped](), collect_stats=True)
    loss.levels.generator.value.fill_(1.0)  # the synthetic term counts
    for level in (math.inf, 0.0):  # not pulled at all, pulled as near as the positive
        loss.levels.metric.value.fill_(level)
        z = z.detach().clone().requires_grad_()
        loss.zero_grad()
        value = loss(z, labels)
        assert value.isfinite()
        value.backward()
        assert loss.generator.num_negatives == count
        assert z.grad.isfinite().all()
        for name, parameter in loss.generator.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in loss.generator.state_dict().values())
    if count == 0:
        assert loss.synthetic_loss == 0


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (LABELS[:, None], r"got 2-D with shape \(6, 1\); pass labels.squeeze\(1\)$"),
        (torch.eye(9)[LABELS].long(), r"shape \(6, 9\); if they are one-hot, pass labels.argmax\(dim=1\)$"),
        (LABELS[None], r"shape \(1, 6\)$"),
    ],
)
def test_labels_of_another_shape_are_told_what_to_pass(labels, hint):
    with pytest.raises(ValueError, match=hint):
        make_loss()(Z, labels)

"""Labels stay distinct in every metric, and embeddings that cannot be searched raise errors."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import testers
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.inference import CustomKNN

from pml_gca.utils import RecallCalculator

pytest.importorskip("faiss")
CLASSES, LIMITS = 9, torch.iinfo(torch.int64)
NUMBERINGS = {
    "from 0": lambda y: y,
    "from 2**24": lambda y: y + 2**24,
    "far apart": lambda y: (y - 4) * 2**40,
    "negative": lambda y: y - 2**31,
    "the smallest int64": lambda y: LIMITS.min + y,
    "the largest int64": lambda y: LIMITS.max - (CLASSES - 1) + y,
    "both ends of int64": lambda y: torch.where(y < 4, LIMITS.min + y, LIMITS.max - (CLASSES - 1) + y),
    "float64": lambda y: 1e15 + y.double(),
    "float64, close": lambda y: 1 + y.double() * 1e-12,
    "float32": lambda y: y.float(),
    "int8": lambda y: (y - 5).to(torch.int8),
    "uint16": lambda y: (y + 65000).to(torch.uint16),
    "uint32": lambda y: (y + 4_294_967_000).to(torch.uint32),
    "uint64": lambda y: (y + 2**60).to(torch.uint64),
    "numpy": lambda y: y.numpy() + 2**24,
    "numpy uint16": lambda y: y.numpy().astype(np.uint16),
    "numpy uint64": lambda y: y.numpy().astype(np.uint64) + np.uint64(2**62),
}
MODES = ("self", "gallery", "queries in gallery")


def clusters(x, count):
    return (x[:, 0] * 3).long() % count


def calculator(**kwargs):
    return RecallCalculator(device="cpu", kmeans_func=clusters, **kwargs)


def data(mode, numbering=lambda y: y, seed=0):
    source = torch.Generator().manual_seed(seed)
    q, r = torch.randn(60, 3, generator=source), torch.randn(80, 3, generator=source)
    ql, rl = (torch.randint(CLASSES, (len(x),), generator=source) for x in (q, r))
    if mode == "self":
        return q, numbering(ql)
    if mode == "gallery":
        return q, numbering(ql), r, numbering(rl)
    return q, numbering(ql), torch.cat([q, r]), numbering(torch.cat([ql, rl])), True


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("mode", MODES)
def test_no_metric_depends_on_how_classes_are_numbered(numbering, mode):
    for flags in ({}, {"avg_of_avgs": True}, {"return_per_class": True}, {"k": "max_bin_count"}):
        expected = calculator(**flags).get_accuracy(*data(mode))
        assert len(expected) == 11
        assert calculator(**flags).get_accuracy(*data(mode, NUMBERINGS[numbering])) == expected


@given(st.lists(st.integers(LIMITS.min, LIMITS.max), min_size=CLASSES, max_size=CLASSES, unique=True))
@settings(max_examples=30)
def test_metrics_do_not_depend_on_ids(ids):
    names = ("recall_at_1", "mean_average_precision_at_r", "AMI")
    expected = calculator(include=names).get_accuracy(*data("gallery"))
    found = calculator(include=names).get_accuracy(*data("gallery", lambda y: torch.tensor(ids)[y]))
    assert found == pytest.approx(expected, abs=1e-12)


def test_large_ids_stay_distinct():
    """Classes of two: chance level is far below the recall of merged classes."""
    torch.manual_seed(0)
    q, labels = torch.randn(400, 8), torch.arange(400) // 2
    small = calculator(include=("recall_at_1",)).get_accuracy(q, labels)["recall_at_1"]
    assert small < 0.05
    assert calculator(include=("recall_at_1",)).get_accuracy(q, labels + 2**40)["recall_at_1"] == small


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0, 2**24, LIMITS.max - 8])
def test_label_rows_are_equal_if_all_columns_are(mode, first):
    def columns(y):
        return torch.stack([first + y // 3, -first + y % 3], dim=1)

    assert calculator().get_accuracy(*data(mode, columns)) == calculator().get_accuracy(*data(mode))
    assert calculator().get_accuracy(*data(mode, lambda y: y[:, None] + first)) == calculator().get_accuracy(
        *data(mode)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("numbering", ["from 0", "from 2**24", "both ends of int64", "float64", "uint32", "numpy"])
def test_custom_comparison_gets_the_original_labels(mode, numbering):
    number, seen = NUMBERINGS[numbering], set()
    known = set(torch.as_tensor(number(torch.arange(CLASSES))).tolist())

    def equal(a, b):
        assert {*a.flatten().tolist(), *b.flatten().tolist()} <= known
        seen.add(a.dtype)
        return a == b

    no_clusters = {"exclude": ("AMI", "NMI")}
    own = calculator(label_comparison_fn=equal, **no_clusters)
    assert own.get_accuracy(*data(mode, number)) == calculator(**no_clusters).get_accuracy(*data(mode))
    assert own.label_comparison_fn is equal
    wide = {"from 0": torch.float32, "both ends of int64": torch.int64}
    assert seen == {wide.get(numbering, torch.float64)}


def test_a_comparison_by_columns_and_by_distance():
    def by_columns(a, b):
        return (a[..., 0] == b[..., 0]) & (a[..., 1] != b[..., 1])

    def near(a, b):
        return (a - b).abs() < 2

    for first in (0, 2**24, 2**50):
        for compare, number in ((by_columns, lambda y: torch.stack([y // 3, y % 3], dim=1)), (near, lambda y: y)):
            found = calculator(label_comparison_fn=compare, exclude=("AMI", "NMI"))
            expected = found.get_accuracy(*data("gallery", number))
            assert found.get_accuracy(*data("gallery", lambda y, n=number: n(y) + first)) == expected  # noqa: B023


def test_labels_of_two_dtypes():
    q, ql, r, rl = data("gallery")
    expected = calculator().get_accuracy(q, ql, r, rl)
    assert calculator().get_accuracy(q, ql.int(), r, rl.double()) == expected
    assert calculator().get_accuracy(q, ql.numpy().astype(np.uint16), r, (rl.float() + 0.1 - 0.1).round()) == expected
    third = calculator().get_accuracy(q, ql / 3, r, (rl / 3).double())  # as PML, in float32
    assert third == expected
    with pytest.raises(ValueError, match=r"query_labels are torch.int64 and hold values beyond 2\*\*24.*in one dtype"):
        calculator().get_accuracy(q, ql + 2**25, r, rl.double() + 2**25)


@pytest.mark.parametrize("number", [lambda y: y.numpy().astype(np.uint16), lambda y: y.to(torch.uint64)])
def test_inside_a_tester(number):
    q, ql, r, rl = data("gallery")
    sets = {n: c_f.EmbeddingDataset(x, number(y)) for n, x, y in (("q", q, ql), ("r", r, rl))}
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator(), dataloader_num_workers=0, normalize_embeddings=False, data_device="cpu"
    )
    found = tester.test(sets, 1, torch.nn.Identity(), splits_to_eval=[("q", ["r"])])["q"]
    assert {n: found[f"{n}_level0"] for n in calculator().get_curr_metrics()} == calculator().get_accuracy(q, ql, r, rl)


Q, QL, R, RL = data("gallery")


def spoiled(x, *values):
    x = x.clone()
    x[0, : len(values)] = torch.tensor(values)
    return x


NAN, INF = math.nan, math.inf
BAD = [
    (
        (spoiled(Q, NAN, NAN), QL),
        ValueError,
        "query must be finite in float32, got 2 NaN and 0 infinite of 180 values, in 1 of 60 embeddings",
    ),
    (
        (Q, QL, spoiled(R, NAN, INF, -INF), RL),
        ValueError,
        "reference must be finite in float32, got 1 NaN and 2 infinite of 240 values, in 1 of 80 embeddings",
    ),
    (
        (Q * NAN, QL, R / 0, RL),
        ValueError,
        "query must be finite in float32, got 180 NaN and 0 infinite of 180 values, in 60 of 60 embeddings; reference "
        "must be finite in float32, got 0 NaN and 240 infinite of 240 values, in 80 of 80 embeddings",
    ),
    ((Q.numpy() * NAN, QL.numpy()), ValueError, "query must be finite in float32, got 180 NaN"),
    ((Q.double() * 1e300, QL), ValueError, "query must be finite in float32, got 0 NaN and 180 infinite"),
    ((Q * 1e25, QL), ValueError, "the search found no neighbour in 3540 of 3540 places"),
    ((Q, QL, Q[:0], QL[:0]), ValueError, "reference must be at least one embedding, (N, D), got shape (0, 3)"),
    ((Q[:0], QL[:0]), ValueError, "query must be at least one embedding, (N, D), got shape (0, 3)"),
    ((Q[:, 0], QL), ValueError, "query must be at least one embedding, (N, D), got shape (60,)"),
    ((Q, QL, R[:, :2], RL), ValueError, "query and reference must have equally many channels, got 3 and 2"),
    ((Q.tolist(), QL), TypeError, "query must be a torch.Tensor or a numpy array, got list"),
    ((Q, QL.tolist()), TypeError, "query_labels must be a torch.Tensor or a numpy array, got list"),
    ((Q, None), TypeError, "query_labels must be a torch.Tensor or a numpy array, got NoneType"),
    ((Q, QL, R), TypeError, "reference_labels must be a torch.Tensor or a numpy array, got NoneType"),
    ((Q, QL, None, QL), ValueError, "reference_labels are given without reference"),
    ((Q, np.array(list("ab") * 30)), TypeError, "query_labels must hold real numbers, got a numpy array of <U1"),
    ((Q, QL + 0j), TypeError, "query_labels must hold real numbers, got torch.complex64"),
    ((Q, QL[:-1]), ValueError, "query_labels must be as many as query: expected 60, got shape (59,)"),
    ((Q, QL, R, RL[0]), ValueError, "reference_labels must be as many as reference: expected 80, got shape ()"),
    ((Q, QL, R, RL[:, None]), ValueError, "query_labels and reference_labels must have the same columns"),
    ((Q, QL / (QL > 0)), ValueError, f"query_labels must be numbers, got {int((QL == 0).sum())} NaN of 60 labels"),
    (
        (Q, QL.numpy().astype(np.uint64) + np.uint64(2**63)),
        ValueError,
        "query_labels must fit into int64, got 60 of 60 above 2**63 - 1; number the classes",
    ),
    ((Q, QL, R, RL, True), ValueError, "reference must begin with the queries if ref_includes_query is True: "),
    (
        (Q, QL, Q[:9], QL[:9], True),
        ValueError,
        "reference must begin with the queries if ref_includes_query is True:",
    ),
]


@pytest.mark.parametrize(("args", "error", "message"), BAD, ids=[row[2][:50] for row in BAD])
def test_bad_input_of_get_accuracy(args, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        calculator().get_accuracy(*args)


def test_close_labels_are_distinct():
    """PML compares labels by a relative tolerance."""
    everything, labels = torch.cat([Q, R]), torch.cat([QL, RL]) + 1_000_000
    with pytest.raises(ValueError, match="60 of its first 60 labels differ"):
        calculator().get_accuracy(Q, QL + 1_000_001, everything, labels, True)


def test_search_without_distances():
    def search(query, k, reference, ref_includes_query):
        return None, torch.cdist(query, reference).topk(k, largest=False).indices

    found = calculator(knn_func=search, k=3).get_accuracy(Q, QL, R, RL)
    assert found == calculator(knn_func=CustomKNN(LpDistance(normalize_embeddings=False)), k=3).get_accuracy(
        Q, QL, R, RL
    )

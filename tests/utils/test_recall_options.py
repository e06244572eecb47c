"""Arguments of the calculator, and the searches that it makes: PML's order, any number type, how many neighbours."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from helpers.recall import CPU, NAMES, RECALLS, CountingKNN, make, mean, oracle
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN

from pml_gca.utils.recall_calculator import RecallCalculator

pytest.importorskip("faiss")


def test_numpy_input_copy_and_pickle():
    q, ql, _, _ = make(7, 20, 1, 4)
    calculator = RecallCalculator(recall_at=RECALLS, include=NAMES, device=CPU)
    expected = calculator.get_accuracy(q, ql)
    assert calculator.get_accuracy(q.numpy(), ql.numpy()) == expected
    for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert other.get_accuracy(q, ql) == expected


@pytest.mark.parametrize(
    ("recall_at", "error", "found"),
    [
        ((), ValueError, "empty"),
        ((0, 1), ValueError, "holds 0"),
        ((2, -1), ValueError, "holds -1"),
        ((1, 2, 1), ValueError, r"twice: \(1, 2, 1\)"),
        ((True, 2), TypeError, "holds True of type bool"),
        ((1, 2.0), TypeError, "holds 2.0 of type float"),
        ((1, math.nan), TypeError, "holds nan of type float"),
        ((torch.tensor(2),), TypeError, r"holds tensor\(2\) of type Tensor"),
        (("1",), TypeError, "holds '1' of type str"),
        (4, TypeError, "of type int"),
        ("1248", TypeError, "of type str"),
    ],
)
def test_bad_recall_at(recall_at, error, found):
    with pytest.raises(error, match=f"recall_at.*{found}.*expected a tuple or list"):
        RecallCalculator(recall_at=recall_at)


def test_arguments_come_in_the_order_of_pml():
    q, ql, _, _ = make(9, 20, 1, 4)
    found = RecallCalculator(("precision_at_1", "recall_at_1"), ("recall_at_1",), False, True, 3, None, CPU)
    assert set(found.get_accuracy(q, ql)) == {"precision_at_1"}
    theirs = list(inspect.signature(AccuracyCalculator).parameters.values())
    ours = list(inspect.signature(RecallCalculator).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [(p.name, p.kind, p.default) for p in theirs]
    assert [(p.name, p.kind) for p in ours[len(theirs) :]] == [("recall_at", inspect.Parameter.KEYWORD_ONLY)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"include": (1, 2)}, TypeError, r"include holds 1; expected names .* recall_at=\(1, 2, ...\)"),
        ({"include": "recall_at_1"}, TypeError, "include must be a tuple or list of names of metrics, got str"),
        ({"exclude": "AMI"}, TypeError, "exclude must be a tuple or list of names of metrics, got str"),
        ({"include": ("recall_at_3",)}, ValueError, "Primary metrics must be one or more of"),
        ({"k": True}, TypeError, "k must be an int, None or 'max_bin_count', got True"),
        ({"k": math.nan}, ValueError, "k must be an integer"),
        ({"k": -3}, ValueError, "k must be an integer"),
        ({"k": "all"}, ValueError, "k must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        RecallCalculator(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"include": "recall_at_1"}, TypeError, "include must be a tuple or list of names of metrics, got str"),
        (
            {"include": ("recall_at_3",)},
            ValueError,
            r"include holds \['recall_at_3'\]; this calculator has \['recall_at",
        ),
        ({"exclude": (2,)}, TypeError, "exclude holds 2; expected names of metrics"),
    ],
)
def test_unknown_metrics(arguments, error, message):
    q, ql, _, _ = make(9, 20, 1, 4)
    with pytest.raises(error, match=message):
        RecallCalculator(include=NAMES, recall_at=RECALLS, device=CPU).get_accuracy(q, ql, **arguments)


def test_numbers_of_numpy_and_names_of_devices():
    q, ql, _, _ = make(9, 20, 1, 4)
    found = RecallCalculator(NAMES, k=np.int64(3), device="cpu", recall_at=tuple(np.array(RECALLS)))
    assert found.get_accuracy(q, ql) == RecallCalculator(NAMES, k=3, device=CPU, recall_at=RECALLS).get_accuracy(q, ql)


pytest.importorskip("faiss")


@pytest.mark.parametrize(
    ("k", "include", "asked"),
    [
        (None, NAMES, 8),
        (None, ("recall_at_2", "AMI"), 2),
        (3, NAMES, 8),
        (30, NAMES, 8),
        ("max_bin_count", ("recall_at_1",), 1),
        (3, (*NAMES, "precision_at_1"), 8),
        (30, (*NAMES, "precision_at_1"), 30),
        (None, ("recall_at_1", "mean_reciprocal_rank"), 49),
        (None, (), 49),
    ],
)
def test_no_more_neighbours_than_needed(k, include, asked):
    q, ql, _, _ = make(2, 50, 1, 5)
    knn = CountingKNN()
    kmeans = lambda x, n: torch.zeros(len(x), dtype=torch.long)  # noqa: E731
    calculator = RecallCalculator(recall_at=RECALLS, include=include, k=k, device=CPU, knn_func=knn, kmeans_func=kmeans)
    calculator.get_accuracy(q, ql)
    assert knn.asked == [asked]


def test_capped_at_the_number_of_references():
    q, ql, r, rl = make(3, 10, 6, 2)
    knn = CountingKNN()
    names = ("recall_at_4", "recall_at_100")
    calculator = RecallCalculator(recall_at=(4, 100), include=names, device=CPU, knn_func=knn)
    calculator.get_accuracy(q, ql, r, rl)
    calculator.get_accuracy(q, ql)
    assert knn.asked == [6, 9]


def test_include_and_exclude():
    q, ql, _, _ = make(4, 30, 1, 3)
    knn = CountingKNN()
    calculator = RecallCalculator(recall_at=(1, 4, 16), exclude=("AMI", "NMI"), device=CPU, k=5, knn_func=knn)
    every = calculator.get_accuracy(q, ql)
    only = calculator.get_accuracy(q, ql, include=("recall_at_4",))
    some = calculator.get_accuracy(q, ql, exclude=("recall_at_16", "r_precision"))
    none = calculator.get_accuracy(q, ql, include=("precision_at_1",))
    again = calculator.get_accuracy(q, ql)
    assert knn.asked == [16, 4, 5, 5, 16]
    assert only == {"recall_at_4": every["recall_at_4"]}
    assert some == {n: v for n, v in every.items() if n not in ("recall_at_16", "r_precision")}
    assert none == {"precision_at_1": every["precision_at_1"]}
    assert again == every
    names = ("recall_at_4", "recall_at_1")
    picked = RecallCalculator(recall_at=(1, 4), include=names, exclude=("recall_at_1",), device=CPU)
    assert picked.get_accuracy(q, ql) == only
    with pytest.raises(ValueError, match="Primary metrics"):
        RecallCalculator(recall_at=(1, 4), include=("recall_at_2",), device=CPU)


def test_other_search_and_instances_do_not_share_metrics():
    q, ql, r, rl = make(6, 20, 30, 4)
    search = CustomKNN(LpDistance(normalize_embeddings=False))
    one = RecallCalculator(recall_at=(3,), include=("recall_at_3",), device=CPU, knn_func=search)
    two = RecallCalculator(recall_at=(3, 5), include=("recall_at_3", "recall_at_5"), device=CPU)
    assert "recall_at_5" not in one.original_function_dict
    a, b = one.get_accuracy(q, ql, r, rl), two.get_accuracy(q, ql, r, rl)
    assert set(a) == {"recall_at_3"}
    assert a["recall_at_3"] == b["recall_at_3"] <= b["recall_at_5"]


@pytest.mark.parametrize(
    "search", [FaissKNN(), CustomKNN(LpDistance(normalize_embeddings=False))], ids=["faiss", "own"]
)
@pytest.mark.parametrize("k", [None, 2, 4, 10, "max_bin_count"])
@pytest.mark.parametrize("references", [1, 2, 3, 4])
def test_fewer_references_than_neighbours_asked_for(references, k, search):
    q, ql, r, _ = make(11, 6, references, 2)
    rl = torch.arange(references) % 3
    found = RecallCalculator(recall_at=RECALLS, k=k, device=CPU, knn_func=search, exclude=("NMI", "AMI"))
    whole = found.get_accuracy(q, ql, r, rl)
    for top in RECALLS:
        hits = oracle(q, ql, r, rl, top, False)
        assert whole[f"recall_at_{top}"] == pytest.approx(mean(x for v in hits.values() for x in v), nan_ok=True)
    assert all(0 <= value <= 1 for value in whole.values())
    itself = found.get_accuracy(r, rl)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in itself.values())


@pytest.mark.parametrize("k", [None, 3, "max_bin_count"])
def test_nothing_to_find(k):
    q, ql, r, rl = make(12, 5, 6, 3)
    found = RecallCalculator(k=k, device=CPU, exclude=("NMI", "AMI"))
    only = RecallCalculator(("precision_at_1",), k=k, device=CPU)
    for calculator in (found, only):
        assert all(math.isnan(value) for value in calculator.get_accuracy(q, ql, r, rl + 3).values())

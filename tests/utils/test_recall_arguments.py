"""Arguments of the calculator: PML's order, any number type, and errors."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from helpers.recall import CPU, NAMES, RECALLS, make
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

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

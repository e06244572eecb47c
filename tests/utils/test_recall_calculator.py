import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import testers
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN

from pml_gca.utils.recall_calculator import RecallCalculator

pytest.importorskip("faiss")
CPU = torch.device("cpu")
RECALLS = (1, 2, 4, 8)
NAMES = tuple(f"recall_at_{k}" for k in RECALLS)
PML_NAMES = (
    "precision_at_1",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    "r_precision",
)


class CountingKNN:
    """An exact search that notes how many neighbours it was asked for."""

    def __init__(self):
        self.asked, self.knn = [], FaissKNN()

    def __call__(self, query, k, reference, ref_includes_query=False):
        self.asked.append(k)
        return self.knn(query, k, reference, ref_includes_query)


def oracle(query, query_labels, ref, ref_labels, top, self_match, same=lambda a, b: a == b):
    """{label: [hit of each of its queries]}, by loops over scalars; queries without a match left out."""
    hits = {}
    for i in range(len(query)):
        others = [j for j in range(len(ref)) if not (self_match and i == j)]
        if not any(same(query_labels[i].item(), ref_labels[j].item()) for j in others):
            continue
        x = query[i].tolist()
        distance = {j: sum((a - b) ** 2 for a, b in zip(x, ref[j].tolist(), strict=True)) for j in others}
        nearest = sorted(others, key=distance.__getitem__)[:top]
        hit = any(same(query_labels[i].item(), ref_labels[j].item()) for j in nearest)
        hits.setdefault(query_labels[i].item(), []).append(float(hit))
    return hits


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def make(seed, queries, references, classes, dim=3):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, dim, generator=g),
        torch.randint(classes, (queries,), generator=g),
        torch.randn(references, dim, generator=g),
        torch.randint(classes, (references,), generator=g),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    queries=st.integers(1, 15),
    extra=st.integers(1, 15),
    classes=st.integers(1, 12),
    mode=st.sampled_from(["self", "reference", "query_in_reference"]),
    options=st.sampled_from(["plain", "avg_of_avgs", "return_per_class"]),
)
def test_equals_the_loop_oracle(seed, queries, extra, classes, mode, options):
    q, ql, r, rl = make(seed, queries, extra, classes)
    if mode == "self":
        r, rl = q, ql
    elif mode == "query_in_reference":
        r, rl = torch.cat([q, r]), torch.cat([ql, rl])
    flags = {} if options == "plain" else {options: True}
    calculator = RecallCalculator(recall_at=RECALLS, include=NAMES, device=CPU, **flags)
    args = (q, ql) if mode == "self" else (q, ql, r, rl, mode == "query_in_reference")
    found = calculator.get_accuracy(*args)
    assert set(found) == set(NAMES)
    for top in RECALLS:
        hits = oracle(q, ql, r, rl, top, mode != "reference")
        got = found[f"recall_at_{top}"]
        if options == "return_per_class":
            if hits:
                assert got == pytest.approx([mean(hits[label]) for label in sorted(hits)])
            else:
                assert len(got) == len(ql.unique())
                assert all(math.isnan(x) for x in got)
        elif options == "avg_of_avgs":
            assert got == pytest.approx(mean(mean(v) for v in hits.values()), nan_ok=True)
        else:
            assert got == pytest.approx(mean(x for v in hits.values() for x in v), nan_ok=True)


def test_hand_computed():
    embeddings = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    found = RecallCalculator(recall_at=(1, 2, 3), device=CPU).get_accuracy(embeddings, torch.tensor([0, 0, 1, 1]))
    # 0 -> own class; 1 -> other, own; 1.5 -> other, other, own; 9 -> own
    assert [found[f"recall_at_{k}"] for k in (1, 2, 3)] == [0.5, 0.75, 1.0]
    assert found["precision_at_1"] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_label_comparison_fn(seed):
    q, ql, r, rl = make(seed, 20, 25, 30)
    calculator = RecallCalculator(
        recall_at=RECALLS,
        include=(*NAMES, "precision_at_1"),
        device=CPU,
        label_comparison_fn=lambda a, b: (a - b).abs() <= 1,
    )
    found = calculator.get_accuracy(q, ql, r, rl)
    for top in RECALLS:
        hits = oracle(q, ql, r, rl, top, False, lambda a, b: abs(a - b) <= 1)
        assert found[f"recall_at_{top}"] == pytest.approx(mean(x for v in hits.values() for x in v))
    assert found["precision_at_1"] == pytest.approx(found["recall_at_1"])


def test_labels_of_several_columns():
    q, first, r, rfirst = make(0, 30, 40, 2)
    _, second, _, rsecond = make(1, 30, 40, 2)
    names = ("recall_at_1", "recall_at_3")
    plain = RecallCalculator(recall_at=(1, 3), include=names, device=CPU)
    merged = plain.get_accuracy(q, first * 2 + second, r, rfirst * 2 + rsecond)
    labels, rlabels = torch.stack([first, second], 1), torch.stack([rfirst, rsecond], 1)
    assert plain.get_accuracy(q, labels, r, rlabels) == merged
    custom = RecallCalculator(
        recall_at=(1, 3), include=names, device=CPU, label_comparison_fn=lambda a, b: (a == b).all(-1)
    )
    assert custom.get_accuracy(q, labels, r, rlabels) == merged


def test_lone_queries_are_left_out_and_nan_when_none_is_left():
    embeddings = torch.tensor([[0.0], [1.0], [2.5], [5.0]])
    calculator = RecallCalculator(recall_at=(1, 2), include=("recall_at_1", "recall_at_2"), device=CPU)
    # label 7 and 8 occur once; the two queries of label 0 are each other's nearest but for the 2.5 between
    found = calculator.get_accuracy(embeddings, torch.tensor([0, 7, 0, 8]))
    assert found == {"recall_at_1": 0.0, "recall_at_2": 1.0}
    alone = calculator.get_accuracy(embeddings, torch.arange(4))
    assert all(math.isnan(v) for v in alone.values())
    apart = calculator.get_accuracy(embeddings, torch.arange(4), embeddings, torch.arange(4) + 9)
    assert all(math.isnan(v) for v in apart.values())
    one = calculator.get_accuracy(embeddings[:1], torch.tensor([0]))
    assert all(math.isnan(v) for v in one.values())


@pytest.mark.parametrize("k", [None, 3, "max_bin_count", 1000])
@pytest.mark.parametrize("self_match", [True, False])
@pytest.mark.parametrize("flag", [None, "avg_of_avgs", "return_per_class"])
def test_pml_metrics_unchanged_and_recall_complete(k, self_match, flag):
    q, ql, r, rl = make(5, 40, 60, 12)
    args = (q, ql) if self_match else (q, ql, r, rl)
    r, rl = (q, ql) if self_match else (r, rl)
    flags = {flag: True} if flag else {}
    ours = RecallCalculator(recall_at=(1, 30, 200), k=k, device=CPU, exclude=("NMI", "AMI"), **flags)
    # Of a k beyond the references PML counts the last reference over and over, and its MAP exceeds 1.
    their_k = None if k == 1000 else k
    theirs = AccuracyCalculator(k=their_k, device=CPU, exclude=("NMI", "AMI"), **flags)
    found, expected = ours.get_accuracy(*args), theirs.get_accuracy(*args)
    assert set(found) == {*PML_NAMES, "recall_at_1", "recall_at_30", "recall_at_200"}
    assert set(expected) == set(PML_NAMES)
    assert {name: found[name] for name in PML_NAMES} == expected
    for top in (1, 30, 200):
        hits = oracle(q, ql, r, rl, top, self_match)
        if flag is None:
            assert found[f"recall_at_{top}"] == pytest.approx(mean(x for v in hits.values() for x in v))
    if flag is None:
        assert found["recall_at_200"] == 1.0  # every reference taken, lone queries left out


def test_clustering_metrics_are_still_there():
    q, ql, _, _ = make(1, 60, 1, 3)
    args = {"device": CPU, "kmeans_func": lambda x, n: (x[:, 0] > 0).long()}
    found = RecallCalculator(recall_at=(1,), **args).get_accuracy(q, ql)
    expected = AccuracyCalculator(**args).get_accuracy(q, ql)
    assert set(found) == {*expected, "recall_at_1"}
    assert {name: found[name] for name in expected} == expected


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


@pytest.mark.parametrize("splits", [None, [("query", ["gallery"])], [("query", ["gallery", "query"])]])
def test_inside_the_global_embedding_space_tester(splits):
    q, ql, r, rl = make(8, 24, 36, 5)
    qn, rn = (torch.nn.functional.normalize(x) for x in (q, r))
    calculator = RecallCalculator(recall_at=RECALLS, include=(*NAMES, "precision_at_1"), k="max_bin_count", device=CPU)
    tester = testers.GlobalEmbeddingSpaceTester(
        accuracy_calculator=calculator, dataloader_num_workers=0, data_device=CPU
    )
    sets = {"query": c_f.EmbeddingDataset(q, ql), "gallery": c_f.EmbeddingDataset(r, rl)}
    found = tester.test(sets, 3, torch.nn.Identity(), splits_to_eval=splits)["query"]
    if splits is None:
        ref, labels, self_match = qn, ql, True
    elif "query" in splits[0][1]:
        ref, labels, self_match = torch.cat([qn, rn]), torch.cat([ql, rl]), True
    else:
        ref, labels, self_match = rn, rl, False
    for top in RECALLS:
        hits = oracle(qn, ql, ref, labels, top, self_match)
        assert found[f"recall_at_{top}_level0"] == pytest.approx(mean(x for v in hits.values() for x in v))


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
def test_metrics_that_are_not_there(arguments, error, message):
    q, ql, _, _ = make(9, 20, 1, 4)
    with pytest.raises(error, match=message):
        RecallCalculator(include=NAMES, recall_at=RECALLS, device=CPU).get_accuracy(q, ql, **arguments)


def test_numbers_of_numpy_and_names_of_devices():
    q, ql, _, _ = make(9, 20, 1, 4)
    found = RecallCalculator(NAMES, k=np.int64(3), device="cpu", recall_at=tuple(np.array(RECALLS)))
    assert found.get_accuracy(q, ql) == RecallCalculator(NAMES, k=3, device=CPU, recall_at=RECALLS).get_accuracy(q, ql)


@pytest.mark.parametrize("name", PML_NAMES)
def test_each_metric_alone(name):
    """PML's mean reciprocal rank alone finds no neighbours to count."""
    q, ql, r, rl = make(10, 30, 40, 4)
    every = RecallCalculator(device=CPU, exclude=("NMI", "AMI"))
    alone = RecallCalculator((name,), device=CPU)
    for args in ((q, ql), (q, ql, r, rl)):
        assert alone.get_accuracy(*args) == {name: every.get_accuracy(*args)[name]}


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

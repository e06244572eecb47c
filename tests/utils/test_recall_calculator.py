"""Recall@K against a slow oracle, and PML's own metrics beside it."""

import math

import pytest
import torch
from helpers.recall import CPU, NAMES, PML_NAMES, RECALLS, make, mean, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import testers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_gca.utils.recall_calculator import RecallCalculator

pytest.importorskip("faiss")


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
    # labels 7 and 8 occur once; between the two queries of label 0 lies another embedding
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
    # If k exceeds the references, PML counts the last one repeatedly, and its MAP exceeds 1.
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


@pytest.mark.parametrize("name", PML_NAMES)
def test_each_metric_alone(name):
    """PML's mean reciprocal rank alone finds no neighbours to count."""
    q, ql, r, rl = make(10, 30, 40, 4)
    every = RecallCalculator(device=CPU, exclude=("NMI", "AMI"))
    alone = RecallCalculator((name,), device=CPU)
    for args in ((q, ql), (q, ql, r, rl)):
        assert alone.get_accuracy(*args) == {name: every.get_accuracy(*args)[name]}

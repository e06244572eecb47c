"""What PML's hooks and record-keeper record of a wrapped loss."""

import itertools

import pytest
import torch
from helpers.contrastive_batch import LABELS, SIZE, make_loss
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f
from torch import nn


@pytest.fixture
def global_flag():
    before = c_f.COLLECT_STATS
    yield
    c_f.COLLECT_STATS = before


@pytest.mark.usefixtures("global_flag")
@pytest.mark.parametrize("flag", [True, False])
def test_pmls_global_flag(flag, z):
    c_f.COLLECT_STATS = flag
    loss = make_loss(losses.TripletMarginLoss())
    for part in (loss, loss.loss, loss.distance, loss.reducer, loss.generator):
        assert part.collect_stats == flag
    loss(z, LABELS)
    assert hasattr(loss, "metric_loss") == hasattr(loss.generator, "num_negatives") == flag
    gradients = ["embedding_gradient_norm", "generator_gradient_norm"]
    assert (
        loss._record_these == ["beta", "metric_level", "generator_level"] + flag * gradients
    )  # as any loss's settings


@pytest.mark.usefixtures("global_flag")
@pytest.mark.parametrize(("flag", "own"), list(itertools.product([True, False], repeat=2)))
def test_collect_stats_follows_the_wrapped_loss(flag, own):
    c_f.COLLECT_STATS = flag
    assert make_loss(losses.TripletMarginLoss(collect_stats=own)).collect_stats == own
    assert make_loss(losses.TripletMarginLoss(collect_stats=own), collect_stats=not own).collect_stats == (not own)
    assert make_loss(losses.MultipleLosses([losses.TripletMarginLoss()])).collect_stats == flag


@pytest.mark.parametrize("start", [True, False])
def test_stats_switched_at_any_time(start, z):
    loss = make_loss(collect_stats=start)
    loss.collect_stats = not start
    with loss.phase("generation"):
        loss(z, LABELS)
    loss(z, LABELS)
    assert hasattr(loss, "synthetic_weight")


@pytest.fixture
def tables(monkeypatch):
    """Return the columns of each table that record-keeper would write, once per write."""
    record_keeper = pytest.importorskip("record_keeper")
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)

    def of(loss):
        found = {}
        keeper = record_keeper.RecordKeeper(attributes_to_search_for=c_f.list_of_recordable_attributes_list_names())
        keeper.append_data = lambda table, column, value, iteration: found.setdefault(table, []).append(column)
        loss(torch.randn(len(LABELS), SIZE), LABELS)
        keeper.update_records({"metric_loss": loss}, 0, recursive_types=[nn.Module, dict])
        return found

    return of


def test_records_name_the_distance_that_is_used_and_nothing_that_is_not(tables):
    names = set(tables(make_loss(losses.NTXentLoss())))
    assert {name for name in names if "distance" in name} == {"loss_NTXentLoss__modules_distance_CosineSimilarity"}
    assert {name for name in names if "educer" in name} == {"loss_NTXentLoss__modules_reducer_MeanReducer"}


def test_two_wrapped_losses_share_as_few_tables_as_pmls_wrappers(tables):
    """record-keeper omits the outer name two levels further in, for PML's wrappers and ours."""

    def shared(make):
        found = tables(losses.MultipleLosses({"a": make(), "b": make()}))
        return {name for name, columns in found.items() if len(set(columns)) < len(columns)}, found

    ours, found = shared(lambda: make_loss(losses.NTXentLoss()))
    for name in "ab":
        wrapper = f"{name}_HardNegativeGenerationLoss"
        assert {"metric_loss", "hardness", "generator_gradient_norm"} < set(found[f"losses__modules_{wrapper}"])
        assert found[f"{wrapper}__modules_loss_NTXentLoss"] == ["temperature"]
    theirs, _ = shared(lambda: losses.CrossBatchMemory(losses.NTXentLoss(), SIZE, memory_size=20))
    assert (
        ours
        == theirs
        == {f"loss_NTXentLoss__modules_{x}" for x in ("distance_CosineSimilarity", "reducer_MeanReducer")}
    )

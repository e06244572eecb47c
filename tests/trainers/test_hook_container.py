"""PML's preset hooks: record keeping, testing, saving and loading."""

import math

import numpy as np
import pytest
import torch
from helpers.hooked_run import BATCH, ITERATIONS, LOSS_TABLE, WRAPPED, Run
from helpers.states import assert_bitwise_equal
from pytorch_metric_learning.utils import common_functions as c_f

pytest.importorskip("faiss")
record_keeper = pytest.importorskip("record_keeper")
pytest.importorskip("tensorboard")


@pytest.fixture
def pml_collects_stats():
    before, c_f.COLLECT_STATS = c_f.COLLECT_STATS, True
    yield
    c_f.COLLECT_STATS = before


@pytest.fixture
def appended(monkeypatch):
    """Collect every record passed to record-keeper's writer: (table, column, number of values)."""
    records = []
    append = record_keeper.RecordWriter.append

    def spy(self, group, series, value, iteration):
        records.append((group, series, value.numel() if isinstance(value, torch.Tensor) else np.size(value)))
        append(self, group, series, value, iteration)

    monkeypatch.setattr(record_keeper.RecordWriter, "append", spy)
    return records


def assert_stats(tables):
    assert {"beta", "metric_level", "generator_level", "metric_loss", "synthetic_loss", "generator_loss"} < set(
        tables[LOSS_TABLE]
    )
    loss = tables[LOSS_TABLE]  # one table, under plain names
    assert not [name for name in tables if "generator" in name.lower().removeprefix(LOSS_TABLE.lower())]
    assert len(loss["metric_loss"]) == len(loss["hardness"]) == 2 * ITERATIONS
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for c in loss.values() for v in c)
    assert loss["synthetic_weight"][0] == 0  # nothing was observed before the first batch
    assert all(0 < weight < 1 for weight in loss["synthetic_weight"][1:])
    assert loss["metric_level"][0] == pytest.approx(loss["metric_loss"][0], rel=1e-4)
    assert loss["num_negatives"] == [BATCH * (BATCH // 2 - 1)] * 2 * ITERATIONS
    assert loss["num_skipped_anchors"] == [0] * 2 * ITERATIONS
    assert all(0 < mean < 1 for mean in loss["lambda_mean"])
    assert all(0 < spread < 0.5 for spread in loss["lambda_std"])
    assert all(0 < hardness <= 1 + 1e-6 for hardness in loss["hardness"])
    assert all(norm > 0 for norm in loss["generator_gradient_norm"])
    assert all(norm > 0 for norm in loss["embedding_gradient_norm"])
    for kind in ("synthetic", "real"):
        assert all(-1 <= value <= 1 for value in loss[f"hardest_{kind}_similarity"])
    for term in ("node_classification", "generated_classification", "auxiliary_classification", "similarity"):
        assert all(value > 0 for value in loss[f"{term}_loss"])
    assert all(value <= 1 for value in loss["diversity_loss"])


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("collect_stats", [True, False])
def test_a_run_with_all_hooks(tmp_path, appended, wrapped, collect_stats):
    run = Run(tmp_path, wrapped, collect_stats=collect_stats).train(epochs=2)
    tables = run.tables()
    names = " ".join([*tables, *(column for table in tables.values() for column in table)])
    assert not any(word in names for word in ("propagation", "auxiliary_classifier_", "levels", "weight]", "bias"))
    assert len(tables["loss_histories"]["metric_loss"]) == 2 * ITERATIONS
    accuracies = next(table for name, table in tables.items() if name.startswith("accuracies"))
    assert all(0 <= v <= 1 for v in accuracies["recall_at_1_level0"] + accuracies["recall_at_2_level0"])
    assert len(accuracies["recall_at_1_level0"]) == 2
    if collect_stats:
        assert_stats(tables)
    else:
        assert set(tables[LOSS_TABLE]) == {"id", "~iteration~", "beta", "metric_level", "generator_level"}
    large = {series for _, series, size in appended if size > 1}
    assert large <= ({"proxies"} if wrapped == "proxy_anchor" else set())  # PML also records those of a plain loss
    assert (tmp_path / "csv" / f"{LOSS_TABLE}.csv").is_file()
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_memory_is_not_recorded(tmp_path, appended):
    run = Run(tmp_path, "contrastive", collect_stats=True, memory_size=20).train(epochs=1)
    assert run.loss.memory.queue.counts()[0] == ITERATIONS
    names = " ".join([*run.tables(), *(column for table in run.tables().values() for column in table)])
    assert not any(word in names for word in ("memory", "queue", "progress"))
    assert {series for _, series, size in appended if size > 1} == set()


@pytest.mark.parametrize("wrapped", ["n_pairs", "multiple"])
@pytest.mark.usefixtures("pml_collects_stats")
def test_stats_for_all_of_pml(tmp_path, wrapped):
    assert_stats(Run(tmp_path, wrapped).train(epochs=2).tables())


@pytest.mark.usefixtures("pml_collects_stats")
def test_a_run_with_the_miner(tmp_path):
    tables = Run(tmp_path, "contrastive", with_miner=True).train(epochs=2).tables()
    assert_stats(tables)
    mined = tables["tuple_miner_GlobalCorrelationMiner"]
    assert mined["num_triplets"] == [BATCH] * 2 * ITERATIONS  # each pair of positives in both directions
    assert not [name for name in tables if name.startswith("tuple_miner_GlobalCorrelationMiner_")]


def test_records_do_not_grow_with_the_generator(tmp_path, appended):
    counts = {}
    for name, with_generator, kwargs in (
        ("plain", False, {}),
        ("small", True, {"size": 8, "collect_stats": True}),
        ("large", True, {"size": 256, "collect_stats": True}),
    ):
        appended.clear()
        run = Run(tmp_path / name, with_generator=with_generator, **kwargs)
        run.trainer.iterations_per_epoch = 1
        run.train(epochs=1)
        counts[name] = (len(appended), sum(size for *_, size in appended))
    assert counts["small"] == counts["large"]
    assert counts["large"][1] == counts["large"][0] < counts["plain"][0] + 40


@pytest.mark.parametrize("level_momentum", [0.9, None])
@pytest.mark.parametrize("wrapped", ["n_pairs", "proxy_anchor"])
def test_resumed_run_equals_an_unbroken_one(tmp_path, wrapped, level_momentum):
    whole = Run(tmp_path / "whole", wrapped, level_momentum=level_momentum).train(epochs=2)
    first = Run(tmp_path / "parts", wrapped, level_momentum=level_momentum).train(epochs=1)
    second = Run(tmp_path / "parts", wrapped, seed=7, level_momentum=level_momentum)
    assert not torch.equal(
        second.loss.generator.objective.classifier.weight, first.loss.generator.objective.classifier.weight
    )

    start = second.hooks.load_latest_saved_models(second.trainer, second.models_folder, device=torch.device("cpu"))
    assert start == 2
    assert_bitwise_equal(second.state(), first.state())
    assert second.loss.metric_level.isfinite()
    assert second.loss.generator.propagation.edge_norm.num_batches_tracked == ITERATIONS
    assert second.trainer.optimizers["metric_loss_optimizer"].state

    second.train(epochs=2, start=start)
    assert_bitwise_equal(second.state(), whole.state())


def test_loading_the_best_models(tmp_path):
    run = Run(tmp_path, with_miner=True).train(epochs=2)
    fresh = Run(tmp_path, seed=7, with_miner=True)
    assert fresh.hooks.load_latest_saved_models(fresh.trainer, fresh.models_folder, torch.device("cpu"), best=True) > 1
    assert fresh.loss.metric_level.isfinite()
    # loading is in-place: the miner still uses the loss's generator
    assert fresh.trainer.mining_funcs["tuple_miner"].generator is fresh.loss.generator
    assert set(fresh.loss.state_dict()) == set(run.loss.state_dict())


def test_checkpoints_hold_tensors_alone_and_no_private_parts(tmp_path):
    run = Run(tmp_path, "proxy_anchor").train(epochs=1)
    saved = torch.load(tmp_path / "models" / "metric_loss_1.pth", weights_only=True)
    assert set(saved) == set(run.loss.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    for part in (
        "loss.proxies",
        "generator.propagation.input.weight",
        "levels.metric.value",
        "levels.generator.weight",
    ):
        assert part in saved

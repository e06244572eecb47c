"""PML's distributed wrappers and DistributedDataParallel in two processes on the CPU."""

import pytest
import torch
from helpers.processes import launch
from helpers.two_processes import (
    ALTERNATING,
    LABELS,
    ROWS,
    TAKE_NO_REFERENCES,
    USUAL,
    WORLD,
    WRAPPED,
    make_batch,
    make_loss,
    seen,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """[rank][case]: what each process saw."""
    return launch("two_processes", tmp_path_factory.mktemp("processes"), WORLD)[WORLD]


def assert_sound(case):
    assert "error" not in case, case
    assert torch.isfinite(case["value"])
    assert torch.isfinite(case["embeddings"]).all()
    for name, gradient in case["parameters"].items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name


def assert_same_gradients(first, second):
    for name, gradient in first["parameters"].items():
        torch.testing.assert_close(second["parameters"][name], gradient, rtol=0, atol=0, msg=name)


def generator_gradient(case):
    return torch.cat([g.flatten() for name, g in case["parameters"].items() if name.startswith("generator.")])


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("efficient", [False, True])
def test_loss_wrapper(results, name, efficient):
    for rank in range(WORLD):
        case = results[rank]["wrapper", efficient, name]
        if efficient and name in TAKE_NO_REFERENCES:
            assert "ref_emb is not supported" in case["error"]
            continue
        assert_sound(case)
        assert (case["embeddings"] != 0).any(dim=1).all()
        assert generator_gradient(case).abs().sum() > 0
        assert case["num_negatives"] == (1 if efficient else WORLD) * ROWS * 2  # of two other classes
        assert case["num_skipped_anchors"] == 0


@pytest.mark.parametrize("efficient", [False, True])
def test_own_rows_are_no_positives(results, efficient):
    anchors = 3 * (1 if efficient else WORLD)
    for rank in range(WORLD):
        alone, matched = (results[rank]["wrapper", efficient, name] for name in ("alone", "matched"))
        assert_sound(alone)
        assert_sound(matched)
        assert (alone["num_negatives"], alone["num_skipped_anchors"]) == (0, anchors)
        assert (matched["num_negatives"], matched["num_skipped_anchors"]) == (anchors * 2, 0)


def test_each_process_gets_its_rows_of_the_gradient(results):
    """Scaled by the world size; DistributedDataParallel around the model divides by it."""
    loss = make_loss()
    embeddings = torch.cat([make_batch(rank).detach() for rank in range(WORLD)]).requires_grad_()
    whole = seen(loss, loss, embeddings, torch.tensor(USUAL * WORLD))
    for rank, rows in enumerate(whole["embeddings"].split(ROWS)):
        case = results[rank]["wrapper", False, "contrastive"]
        torch.testing.assert_close(case["embeddings"], WORLD * rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LABELS)
def test_data_parallel_loss(results, name):
    for rank in range(WORLD):
        case = results[rank]["ddp", name]
        assert_sound(case)
        assert generator_gradient(case).abs().sum() > 0
    assert_same_gradients(results[0]["ddp", name], results[1]["ddp", name])


@pytest.mark.parametrize("efficient", [False, True])
def test_data_parallel_wrapper(results, efficient):
    """DistributedDataParallel keeps the generators of all processes equal; the wrapper alone does not."""
    cases = [results[rank]["ddp of wrapper", efficient] for rank in range(WORLD)]
    for case in cases:
        assert_sound(case)
        assert (case["embeddings"] != 0).any(dim=1).all()
    assert_same_gradients(*cases)
    loss = make_loss()
    embeddings = torch.cat([make_batch(rank).detach() for rank in range(WORLD)]).requires_grad_()
    whole = seen(loss, loss, embeddings, torch.tensor(USUAL * WORLD))
    name = "generator.objective.classifier.weight"  # independent of random draws; PML multiplies the loss by WORLD
    torch.testing.assert_close(cases[0]["parameters"][name], WORLD * whole["parameters"][name])


@pytest.mark.parametrize("holder", ALTERNATING)
def test_both_steps_of_the_alternating_trainer(results, holder):
    """Generators of all processes move and stay equal, although batches and random draws differ."""
    first, second = (results[rank]["alternating", holder] for rank in range(WORLD))
    for name, parameter in first["after"].items():
        assert torch.equal(parameter, second["after"][name]), name
        moved = not torch.equal(parameter, first["before"][name])
        assert moved or name.endswith("edge.key.bias"), name  # a softmax over two keys cancels it
    assert first["restored"]
    assert "needs find_unused_parameters=True" in results[0]["alternating", "without"]


def rows_of(mined, stop):
    kept = mined[0] < stop
    return sorted(zip(*(t[kept].tolist() for t in mined), strict=True))


def test_miner_wrapper(results):
    labels = torch.tensor(USUAL * WORLD)
    for rank in range(WORLD):
        whole, efficient = results[rank]["miner", False], results[rank]["miner", True]
        for anchors, positives, negatives in (whole, efficient):
            assert len(anchors) > 0
            assert (labels[anchors] == labels[positives]).all()
            assert (anchors != positives).all()
            assert (labels[anchors] != labels[negatives]).all()
        assert whole[0].max() == WORLD * ROWS - 1
        assert efficient[0].max() == ROWS - 1


def test_miner_wrapper_mines_the_same_either_way(results):
    for rank in range(WORLD):
        assert rows_of(results[rank]["miner", True], ROWS) == rows_of(results[rank]["miner", False], ROWS)

"""Two processes on the CPU, with PML's distributed wrappers and DistributedDataParallel.

This file is both the tests and the program of the two processes, which run every case once and save what they saw.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.nn.parallel import DistributedDataParallel

from pml_gca import GlobalCorrelationGenerator, GlobalCorrelationMiner, HardNegativeGenerationLoss
from pml_gca.trainers import AlternatingTrainer

WORLD, CLASSES, D, ROWS = 2, 6, 8, 6
TIMEOUT = 600  # seconds; a hang is a failure
WRAPPED = {
    "contrastive": losses.ContrastiveLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "triplet": losses.TripletMarginLoss,
    "n_pairs": losses.NPairsLoss,
    "proxy_anchor": lambda: losses.ProxyAnchorLoss(CLASSES, D),
}
TAKE_NO_REFERENCES = ("n_pairs", "proxy_anchor")  # in PML
USUAL = [0, 0, 1, 1, 2, 2]
LABELS = {  # of each process
    "usual": (USUAL, USUAL),
    "one class": ([3] * 6, [3] * 6),
    "singletons": ([0, 1, 2, 3, 4, 5],) * 2,
    "no negatives in one process": (USUAL, [0] * 6),
    "no positives in one process": (USUAL, [0, 1, 2, 3, 4, 5]),
    "one sample in one process": (USUAL, [4]),
    "nothing in one process": (USUAL, []),
}


def make_loss(wrapped="contrastive"):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(CLASSES, D, num_layers=1, num_heads=2, dropout=0.0)
    return HardNegativeGenerationLoss(WRAPPED[wrapped](), generator, collect_stats=True)


def make_batch(rank, rows=ROWS):
    torch.manual_seed(10 + rank)
    return torch.randn(ROWS, D)[:rows].clone().requires_grad_()


def gradients(loss):
    return {name: None if p.grad is None else p.grad.clone() for name, p in loss.named_parameters()}


def seen(module, loss, embeddings, labels, rounds=1):
    """Return everything that tests check: value, gradients, counts."""
    try:
        for _ in range(rounds):
            embeddings.grad = None
            loss.zero_grad()
            value = module(embeddings, labels)
            value.backward()
    except ValueError as error:
        return {"error": str(error)}
    return {
        "value": value.detach(),
        "embeddings": embeddings.grad,
        "parameters": gradients(loss),
        "num_negatives": loss.generator.num_negatives,
        "num_skipped_anchors": loss.generator.num_skipped_anchors,
    }


def in_parallel(loss):
    # Each step of an iteration leaves some parameters without gradient.
    return DistributedDataParallel(DistributedLossWrapper(loss), find_unused_parameters=True)


ALTERNATING = {
    "one": in_parallel,
    "within": lambda loss: losses.MultipleLosses([in_parallel(loss), in_parallel(losses.ProxyAnchorLoss(CLASSES, D))]),
}


def train_alternating(rank, holder):
    """Return the parameters of the loss before and after a few iterations on batches of this process."""
    loss = make_loss()
    torch.manual_seed(20)
    metric_loss = ALTERNATING[holder](loss)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    make_trainer(rank, metric_loss).train()
    after = {name: p.detach().clone() for name, p in loss.named_parameters()}
    return {"before": before, "after": after, "restored": "forward" not in vars(loss)}


def make_trainer(rank, metric_loss):
    torch.manual_seed(30 + rank)
    data = torch.utils.data.TensorDataset(torch.randn(ROWS, D), torch.tensor(USUAL))
    return AlternatingTrainer(
        models={"trunk": torch.nn.Identity()},
        optimizers={"metric_loss_optimizer": torch.optim.SGD(metric_loss.parameters(), lr=1e-2)},
        batch_size=ROWS,
        loss_funcs={"metric_loss": metric_loss},
        dataset=data,
        iterations_per_epoch=3,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )


def run_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    results = {}
    labels = torch.tensor(USUAL)
    for efficient in (False, True):
        for name in WRAPPED:
            loss = make_loss(name)
            module = DistributedLossWrapper(loss, efficient=efficient)
            results["wrapper", efficient, name] = seen(module, loss, make_batch(rank), labels)
        for name, own in (("alone", range(3 * rank, 3 * rank + 3)), ("matched", range(3))):
            loss = make_loss()
            module = DistributedLossWrapper(loss, efficient=efficient)
            results["wrapper", efficient, name] = seen(module, loss, make_batch(rank, 3), torch.tensor(list(own)))
        loss = make_loss()
        module = DistributedDataParallel(DistributedLossWrapper(loss, efficient=efficient))
        results["ddp of wrapper", efficient] = seen(module, loss, make_batch(rank), labels)
        miner = DistributedMinerWrapper(
            GlobalCorrelationMiner(make_loss().generator, negatives_per_anchor=2), efficient=efficient
        )
        results["miner", efficient] = miner(make_batch(rank), labels)
    for name, per_rank in LABELS.items():
        loss = make_loss()
        own = torch.tensor(per_rank[rank], dtype=torch.long)
        module = DistributedDataParallel(loss, find_unused_parameters=False)
        results["ddp", name] = seen(module, loss, make_batch(rank, len(own)), own, rounds=2)
    for holder in ALTERNATING:
        results["alternating", holder] = train_alternating(rank, holder)
    try:
        make_trainer(rank, DistributedDataParallel(make_loss()))
    except ValueError as error:
        results["alternating", "without"] = str(error)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """[rank][case]: what each process saw."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    folder = tmp_path_factory.mktemp("processes")
    # A new process that has not started threads before it forks.
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=TIMEOUT)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


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
    name = "generator.auxiliary_classifier.weight"  # independent of random draws
    directions = [case["parameters"][name].flatten() for case in (cases[0], whole)]
    assert torch.cosine_similarity(*directions, dim=0) > 0.9999


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


if __name__ == "__main__":
    import torch._dynamo  # DistributedDataParallel imports it; once is faster than in each process

    torch.set_num_threads(1)
    torch.multiprocessing.start_processes(run_process, (sys.argv[1],), nprocs=WORLD, start_method="fork")

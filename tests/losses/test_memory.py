"""A loss with a memory: what enters and when, what a checkpoint holds, and what is refused."""

import copy

import pytest
import torch
from helpers.every_loss import NUM_CLASSES, SIZE
from helpers.remembered import assert_same_state, batch, make_loss, state_of
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import HardestNegativeGenerator
from pml_gca.losses import CrossBatchMemory, SelfSupervisedLoss
from pml_gca.losses.memory import Queue

# The queue.


@given(st.integers(1, 7), st.lists(st.integers(0, 12), max_size=6))
def test_the_queue_holds_the_last_rows_the_newest_over_the_oldest(size, counts):
    queue, slots, number = Queue(size, 2), [0] * size, 0
    for batches, count in enumerate(counts):
        rows = torch.arange(number, number + count) + 1
        queue.add(rows[:, None].repeat(1, 2).double(), rows)
        for row in rows.tolist():
            slots[(row - 1) % size] = row
        number += count
        assert queue.labels.tolist() == slots
        assert queue.embeddings[:, 1].tolist() == slots
        assert queue.counts() == (batches + 1, number) == tuple(queue.progress.tolist())


def test_a_batch_enters_once_after_its_loss_in_training_alone():
    loss = make_loss(memory_size=10)
    (z, y), (z2, y2) = batch(4), batch(4, seed=1)
    loss(z, y)
    queue = loss.memory.queue
    assert torch.equal(queue.embeddings[:4], z.detach())
    assert torch.equal(queue.labels[:4], y)
    assert not queue.embeddings.requires_grad
    before = state_of(loss)
    with torch.no_grad():
        loss(z2, y2)
    loss.eval()(z2, y2 + 1000)
    assert_same_state(loss, before)
    loss.train()(z2, y2)
    assert torch.equal(queue.embeddings[4:8], z2.detach())
    assert queue.counts() == (2, 8)


@pytest.mark.parametrize("has_objective", [True, False])
def test_both_parts_of_an_alternating_schedule_see_the_same_memory(has_objective):
    loss = make_loss()
    if not has_objective:
        generator = HardestNegativeGenerator(NUM_CLASSES, SIZE)
        loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, memory_size=9)
    loss(*batch(4, seed=1))
    (z, y), seen = batch(5), []
    generate = loss.generator.generate
    loss.generator.generate = lambda nodes, *args: seen.append(nodes.num_memory) or generate(nodes, *args)
    with loss.phase("embedding"):
        loss(z, y)
    assert loss.memory.queue.counts() == ((1, 4) if has_objective else (2, 9))
    if has_objective:
        with loss.phase("generation"):
            loss(z.detach(), y)
        assert loss.memory.queue.counts() == (2, 9)
    assert set(seen) == {4}


def test_two_batches_before_a_backward_pass():
    """The second batch writes over rows that the first one was computed with."""
    results = []
    for together in (False, True):
        loss, rows, values = make_loss(memory_size=6), [batch(5, seed) for seed in range(3)], []
        for number, (z, y) in enumerate(rows):
            torch.manual_seed(number)
            values.append(loss(z, y))
            if not together:
                values[-1].backward()
        if together:
            sum(values).backward()
        results.append([*(z.grad for z, _ in rows), *(p.grad for p in loss.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_it_is_used_from_the_iteration_it_starts_at():
    loss, used = make_loss(memory_size=6, memory_start=2), []
    generate = loss.generator.generate
    loss.generator.generate = lambda nodes, *args: used.append(nodes.num_memory) or generate(nodes, *args)
    for seed in range(4):
        loss(*batch(4, seed))
    assert used == [0, 0, 6, 6]


@pytest.mark.parametrize("failing", [None, "generator.generate", "loss.forward"])
def test_a_call_that_fails_leaves_the_memory_as_it_was(failing, monkeypatch):
    loss = make_loss()
    loss(*batch(5))
    before, (z, y) = state_of(loss), batch(5, seed=1)

    def fail(*args, **kwargs):
        raise RuntimeError("as if out of memory")

    if failing is None:
        y[2] = NUM_CLASSES
    else:
        part, method = failing.split(".")
        monkeypatch.setattr(getattr(loss, part), method, fail)
    with pytest.raises((ValueError, RuntimeError)):
        loss(z, y)
    assert_same_state(loss, before)
    assert loss.memory.queue.counts() == (1, 5)


# Checkpoints.


def steps(loss, numbers):
    values = []
    for number in numbers:
        torch.manual_seed(number)
        values.append(loss(*batch(5, number)).item())
    return values


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_run_equals_an_unbroken_one(after, tmp_path):
    loss = make_loss(memory_size=12)
    steps(loss, range(after))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    wanted = steps(loss, range(after, 7))
    again = make_loss(memory_size=12)
    again.load_state_dict(torch.load(tmp_path / "loss.pt"))
    assert steps(again, range(after, 7)) == wanted
    assert_same_state(again, state_of(loss))


def test_copies_have_a_memory_of_their_own():
    loss = make_loss(memory_size=12)
    steps(loss, range(2))
    twin = copy.deepcopy(loss)
    wanted = steps(loss, range(2, 4))
    assert twin.memory.queue.counts() == (2, 10)
    assert steps(twin, range(2, 4)) == wanted


def test_another_size_at_resume_is_refused():
    with pytest.raises(RuntimeError, match="memory_size is 8, and the checkpoint is of memory_size=12"):
        make_loss(memory_size=8).load_state_dict(make_loss(memory_size=12).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*memory"):
        make_loss(memory_size=0).load_state_dict(make_loss(memory_size=12).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*memory"):
        make_loss(memory_size=8).load_state_dict(make_loss(memory_size=0).state_dict())


# Dtypes.


def test_it_is_kept_in_the_widest_dtype_of_batches_and_given_in_that_of_the_batch():
    generator, dtypes = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2), []
    loss = HardNegativeGenerationLoss(losses.MultiSimilarityLoss(), generator, memory_size=9)
    for seed, dtype in enumerate((torch.bfloat16, torch.float64, torch.half, torch.float32, torch.double)):
        z, y = batch(5, seed)
        z = z.detach().to(dtype).requires_grad_()
        loss(z, y).backward()
        assert z.grad.isfinite().all()
        dtypes.append(loss.memory.queue.embeddings.dtype)
    assert dtypes == [torch.float32, *[torch.float64] * 4]
    other = HardNegativeGenerationLoss(losses.MultiSimilarityLoss(), loss.generator, memory_size=9)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.memory.queue.embeddings, loss.memory.queue.embeddings)
    assert loss.half().memory.queue.embeddings.dtype == torch.float64


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"memory_size": -1}, ValueError, "memory_size must be at least 0, got -1"),
        ({"memory_size": 2.5}, TypeError, "memory_size must be an integer, got float"),
        ({"memory_size": True}, TypeError, "memory_size must be an integer, got bool"),
        ({"memory_size": 8, "memory_start": -1}, ValueError, "memory_start must be at least 0, got -1"),
        ({"memory_size": 8, "memory_start": "1"}, TypeError, "memory_start must be an integer, got str"),
        ({"memory_size": 0, "memory_start": 5}, ValueError, "set memory_size, too; got 5 and no size"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        make_loss(**arguments)


def test_references_beside_a_memory_are_refused():
    loss, (z, y) = make_loss(), batch(5)
    loss(z, y)
    before = state_of(loss)
    for references in ((z.detach(), y.clone()), (z.detach(), None)):
        with pytest.raises(ValueError, match=r"ref_emb cannot be given to a loss with a memory .*memory_size=20"):
            loss(z, y, None, *references)
    assert_same_state(loss, before)
    loss(z, y, None, z, y)  # PML's way to say that there are none
    assert loss.eval()(z, y, None, z.detach(), y.clone()).isfinite()


@pytest.mark.parametrize(
    "wrap", [SelfSupervisedLoss, lambda loss: CrossBatchMemory(loss, SIZE, memory_size=8)], ids=["views", "memory"]
)
def test_wrappers_with_labels_or_a_memory_of_their_own_are_refused(wrap):
    with pytest.raises(ValueError, match="memory_size=20"):
        wrap(make_loss())
    wrap(make_loss(memory_size=0))

"""A loss with a memory: what enters, what comes out, in which losses it takes part, and what a checkpoint holds."""

import copy
import math

import pytest
import torch
from helpers import oracle
from helpers import slow_losses as slow
from helpers.counters import LiveBytes
from helpers.every_loss import NUM_CLASSES, SIZE, WORKS
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses, miners
from torch.autograd import grad

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss, SyntheticNegatives
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.losses import CrossBatchMemory, SelfSupervisedLoss, SyntheticBatch
from pml_gca.losses.memory import Queue

LEVEL, BETA = 3.0, 20.0


def make(wrapped=None, *, memory_size=20, num_layers=1, **kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=num_layers, num_heads=2, dropout=0.0)
    loss = HardNegativeGenerationLoss(
        wrapped or losses.ContrastiveLoss(), generator, beta=BETA, memory_size=memory_size, **kwargs
    ).double()
    loss.levels.metric.value.fill_(LEVEL)
    loss.levels.generator.value.fill_(14.0)
    return loss


def batch(count, seed=0, num_classes=4):
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(0, num_classes, (count,), generator=source)
    return torch.randn(count, SIZE, generator=source, dtype=torch.float64).requires_grad_(), y


def state_of(loss):
    return {name: value.clone() for name, value in loss.state_dict().items()}


def assert_same_state(loss, before):
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def remembering(wrapped):
    loss, (old, old_labels) = make(wrapped, collect_stats=True), batch(6, seed=5)
    loss.memory.queue.add(old, old_labels)
    return loss, old.detach(), old_labels


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
    loss = make(memory_size=10)
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
    loss = make()
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


def test_it_is_used_from_the_iteration_it_starts_at():
    loss, used = make(memory_size=6, memory_start=2), []
    generate = loss.generator.generate
    loss.generator.generate = lambda nodes, *args: used.append(nodes.num_memory) or generate(nodes, *args)
    for seed in range(4):
        loss(*batch(4, seed))
    assert used == [0, 0, 6, 6]


@pytest.mark.parametrize("failing", [None, "generator.generate", "loss.forward"])
def test_a_call_that_fails_leaves_the_memory_as_it_was(failing, monkeypatch):
    loss = make()
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


# Values and gradients.


def whole_by_oracle(loss, z, y, memory, memory_labels, draws):
    """The terms of the loss as functions of z and the parameters: contrastive, with a memory."""
    nodes, labels = torch.cat([z, memory]), [*y.tolist(), *memory_labels.tolist()]
    found = oracle.objectives(loss.generator, nodes, labels, draws, LEVEL, len(memory))
    alone = oracle.objectives(loss.generator, nodes.detach(), labels, draws, LEVEL, len(memory))
    synthetic = z.new_zeros(())
    if found.negatives:
        anchors, own_labels, rows = zip(*found.negatives, strict=True)
        negatives = SyntheticNegatives(torch.stack(rows), torch.tensor(own_labels), torch.tensor(anchors))
        synthetic = slow.contrastive(SyntheticBatch(z, y, nodes, torch.tensor(labels), negatives))
    metric = metric_by_loops(nodes, labels, len(z))
    return metric, synthetic, found.node_classification, alone.generator, alone.auxiliary


def metric_by_loops(nodes, labels, size):
    """The contrastive loss of all pairs of an anchor and another node."""
    pairs = [(i, j) for i in range(size) for j in range(len(nodes)) if i != j]
    near = [slow.euclidean(nodes[i], nodes[j]) for i, j in pairs if labels[i] == labels[j]]
    far = [torch.relu(1 - slow.euclidean(nodes[i], nodes[j])) for i, j in pairs if labels[i] != labels[j]]
    return slow.mean_of_positive(near) + slow.mean_of_positive(far)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(1, 4), st.integers(1, 2), st.integers(0, 99))
def test_value_and_gradients_by_the_slow_oracle(size, memory_size, num_classes, num_layers, seed):
    loss = make(memory_size=memory_size, num_layers=num_layers)
    (old, old_labels), (z, y) = batch(memory_size, seed, num_classes), batch(size, seed + 1, num_classes)
    loss.memory.queue.add(old, old_labels)
    torch.manual_seed(4)
    draws = torch.rand(size, size + memory_size, dtype=torch.float64)
    torch.manual_seed(4)
    value = loss(z, y)
    metric, synthetic, classification, generation, auxiliary = whole_by_oracle(
        loss, z, y, old.detach(), old_labels, draws
    )
    synthetic = (1 - math.exp(-BETA / 14.0)) * synthetic
    wanted = metric + synthetic + classification + generation + auxiliary
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-10)
    reached = {
        z: metric + synthetic + classification,
        tuple(loss.generator.propagation.parameters()): classification + generation,
        tuple(loss.generator.objective.parameters()): auxiliary,
    }
    for inputs, term in reached.items():
        options = {"retain_graph": True, "materialize_grads": True}
        for ours, theirs in zip(*(grad(x, inputs, **options) for x in (value, term)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_without_filled_rows_the_loss_is_that_without_a_memory():
    results = []
    for memory_size, memory_start in ((0, 0), (8, 0), (8, 3)):
        loss = make(memory_size=memory_size, memory_start=memory_start)
        z, y = batch(7)
        torch.manual_seed(1)
        loss(z, y).backward()
        buffers = (*loss.generator.buffers(), *loss.levels.buffers())
        results.append([z.grad, *(p.grad for p in loss.parameters()), *buffers])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    assert not any("memory" in name for name in make(memory_size=0).state_dict())


@pytest.mark.parametrize("name", WORKS)
def test_every_loss_learns_with_a_memory(name):
    wrapped = WORKS[name](NUM_CLASSES)
    loss, *_ = remembering(wrapped)
    z, y = batch(9, seed=2)
    value = loss(z, y)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()
    assert z.grad.any()
    assert loss.synthetic_loss > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    # A class of the memory alone adds a negative for every anchor with a positive.
    before = loss.generator.num_negatives
    loss.memory.queue.add(batch(1)[0], torch.tensor([NUM_CLASSES - 1]))
    loss(batch(9, seed=3)[0], y)
    assert loss.generator.num_negatives > before


# J_m.


def metric_of(loss, z, y, indices=None):
    loss.collect_stats = True
    loss(z, y, indices)
    return loss.metric_loss


def test_the_wrapped_loss_sees_pairs_of_batch_and_memory_and_of_the_batch_once():
    loss, old, old_labels = remembering(losses.ContrastiveLoss())
    z, y = batch(5)
    wanted = metric_by_loops(torch.cat([z, old]), [*y.tolist(), *old_labels.tolist()], len(z))
    assert metric_of(loss, z, y) == pytest.approx(wanted.item(), rel=1e-10)


def test_the_pairs_by_hand():
    wrapped, seen = losses.ContrastiveLoss(), []
    loss = make(wrapped, memory_size=3)
    loss.memory.queue.add(batch(3)[0], torch.tensor([1, 0, 2]))
    forward = wrapped.forward
    wrapped.forward = lambda *args, **kwargs: seen.append(args) or forward(*args, **kwargs)
    loss(batch(3, seed=1)[0], torch.tensor([0, 0, 1]))
    anchors, positives, others, negatives = seen[-1][2]
    assert sorted(zip(anchors.tolist(), positives.tolist(), strict=True)) == [(0, 1), (0, 4), (1, 0), (1, 4), (2, 3)]
    assert sorted(zip(others.tolist(), negatives.tolist(), strict=True)) == [
        *((i, j) for i in (0, 1) for j in (2, 3, 5)),
        *((2, j) for j in (0, 1, 4, 5)),
    ]


def test_mined_pairs_and_all_pairs_with_the_memory():
    loss, old, old_labels = remembering(losses.ContrastiveLoss())
    z, y = batch(8)
    mined = miners.TripletMarginMiner(margin=0.05)(z, y)
    assert len(mined[0]) > 0
    nodes, labels = torch.cat([z, old]), torch.cat([y, old_labels])
    near = [slow.euclidean(nodes[a], nodes[p]) for a, p in zip(mined[0], mined[1], strict=True)]
    far = [torch.relu(1 - slow.euclidean(nodes[a], nodes[n])) for a, n in zip(mined[0], mined[2], strict=True)]
    for i in range(len(z)):
        for j in range(len(z), len(nodes)):
            apart = slow.euclidean(nodes[i], nodes[j])
            (near if labels[i] == labels[j] else far).append(apart if labels[i] == labels[j] else torch.relu(1 - apart))
    wanted = slow.mean_of_positive(near) + slow.mean_of_positive(far)
    assert metric_of(loss, z, y, mined) == pytest.approx(wanted.item(), rel=1e-10)


def test_drawn_triplets_are_of_batch_and_memory_and_no_anchor_is_its_own_positive():
    wrapped, seen = losses.TripletMarginLoss(triplets_per_anchor=50), []
    loss, old, old_labels = remembering(wrapped)
    forward = wrapped.forward
    wrapped.forward = lambda *args, **kwargs: seen.append(args) or forward(*args, **kwargs)
    z, y = batch(5)
    loss(z, y)
    _, labels, (anchors, positives, negatives), nodes, node_labels = seen[-1]
    assert torch.equal(nodes, torch.cat([z, old]))
    assert torch.equal(node_labels, torch.cat([y, old_labels]))
    assert (anchors != positives).all()
    assert (labels[anchors] == node_labels[positives]).all()
    assert (labels[anchors] != node_labels[negatives]).all()
    assert positives.max() >= len(z)
    assert len(anchors) <= 50 * len(z)


@pytest.mark.parametrize(
    "name", ["NPairsLoss", "NCALoss", "ProxyAnchorLoss", "MultipleLosses", "TripletMarginLoss, swap"]
)
def test_other_losses_see_the_batch_alone(name):
    loss, _, _ = remembering(WORKS[name](NUM_CLASSES))
    z, y = batch(6)
    assert metric_of(loss, z, y) == pytest.approx(loss.loss(z, y).item(), rel=1e-12)


@pytest.mark.parametrize("classified", [False, True])
def test_negatives_of_the_memory_for_other_generators(classified):
    generator = HardestNegativeGenerator(NUM_CLASSES, SIZE)
    generator = ClassifiedGenerator(generator, num_layers=1) if classified else generator
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, memory_size=8, collect_stats=True).double()
    z = batch(4)[0]
    loss.memory.queue.add(batch(8, seed=3)[0], torch.arange(8) % 4 + 3)
    y = torch.tensor([0, 0, 1, 1])
    loss(z, y).backward()
    inside = getattr(loss.generator, "generator", loss.generator)
    assert inside.num_negatives == 4 * 5  # of the batch's other class and the memory's four
    assert z.grad.isfinite().all()


def test_nothing_in_the_hardest_negatives_grows_with_the_square_of_the_memory():
    peaks = []
    for size in (2000, 4000):
        generator = HardestNegativeGenerator(NUM_CLASSES, SIZE)
        loss = HardNegativeGenerationLoss(losses.NPairsLoss(), generator, memory_size=size)
        loss.memory.queue.add(*(x.detach() for x in batch(size)))
        z, y = batch(6, seed=1)
        with LiveBytes() as live:
            loss(z.float(), y).backward()
        peaks.append(live.peak)
    assert peaks[1] < 2.1 * peaks[0]


# Checkpoints.


def steps(loss, numbers):
    values = []
    for number in numbers:
        torch.manual_seed(number)
        values.append(loss(*batch(5, number)).item())
    return values


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_run_equals_an_unbroken_one(after, tmp_path):
    loss = make(memory_size=12)
    steps(loss, range(after))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    wanted = steps(loss, range(after, 7))
    again = make(memory_size=12)
    again.load_state_dict(torch.load(tmp_path / "loss.pt"))
    assert steps(again, range(after, 7)) == wanted
    assert_same_state(again, state_of(loss))


def test_copies_have_a_memory_of_their_own():
    loss = make(memory_size=12)
    steps(loss, range(2))
    twin = copy.deepcopy(loss)
    wanted = steps(loss, range(2, 4))
    assert twin.memory.queue.counts() == (2, 10)
    assert steps(twin, range(2, 4)) == wanted


def test_another_size_at_resume_is_refused():
    with pytest.raises(RuntimeError, match="memory_size is 8, and the checkpoint is of memory_size=12"):
        make(memory_size=8).load_state_dict(make(memory_size=12).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*memory"):
        make(memory_size=0).load_state_dict(make(memory_size=12).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*memory"):
        make(memory_size=8).load_state_dict(make(memory_size=0).state_dict())


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
        make(**arguments)


def test_references_beside_a_memory_are_refused():
    loss, (z, y) = make(), batch(5)
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
        wrap(make())
    wrap(make(memory_size=0))

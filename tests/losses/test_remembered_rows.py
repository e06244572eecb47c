"""What a memory changes in the value and the gradients of a loss, term by term."""

import math

import pytest
import torch
from helpers import oracle
from helpers import slow_losses as slow
from helpers.counters import LiveBytes
from helpers.every_loss import NUM_CLASSES, SIZE, WORKS
from helpers.remembered import BETA, GENERATOR_LEVEL, LEVEL, batch, make_loss, remembering
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses, miners
from torch.autograd import grad

from pml_gca import HardNegativeGenerationLoss, SyntheticNegatives
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator
from pml_gca.losses import SyntheticBatch


def whole_by_oracle(loss, z, y, memory, memory_labels, draws):
    """The terms of the loss as functions of z and the parameters: contrastive, with a memory."""
    nodes, labels = torch.cat([z, memory]), [*y.tolist(), *memory_labels.tolist()]
    found = oracle.objectives(loss.generator, nodes, labels, draws, LEVEL, len(memory))
    alone = oracle.objectives(loss.generator, nodes.detach(), labels, draws, LEVEL, len(memory))
    synthetic = z.new_zeros(())
    if found.negatives:
        anchors, own_labels, rows = zip(*found.negatives, strict=True)
        negatives = SyntheticNegatives(torch.stack(rows), torch.tensor(own_labels), torch.tensor(anchors))
        compared = SyntheticBatch(z, y, nodes, torch.tensor(labels), negatives)
        if max(len(negatives), compared.positive_mask().sum()) > 1:  # PML's loss of one pair of each kind is 0
            synthetic = slow.contrastive(compared)
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
    loss = make_loss(memory_size=memory_size, num_layers=num_layers)
    (old, old_labels), (z, y) = batch(memory_size, seed, num_classes), batch(size, seed + 1, num_classes)
    loss.memory.queue.add(old, old_labels)
    torch.manual_seed(4)
    draws = torch.rand(size, size + memory_size, dtype=torch.float64)
    torch.manual_seed(4)
    value = loss(z, y)
    metric, synthetic, classification, generation, auxiliary = whole_by_oracle(
        loss, z, y, old.detach(), old_labels, draws
    )
    synthetic = (1 - math.exp(-BETA / GENERATOR_LEVEL)) * synthetic
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
        loss = make_loss(memory_size=memory_size, memory_start=memory_start)
        z, y = batch(7)
        torch.manual_seed(1)
        loss(z, y).backward()
        buffers = (*loss.generator.buffers(), *loss.levels.buffers())
        results.append([z.grad, *(p.grad for p in loss.parameters()), *buffers])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    assert not any("memory" in name for name in make_loss(memory_size=0).state_dict())


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
    loss = make_loss(wrapped, memory_size=3)
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


@pytest.mark.parametrize("name", ["NPairsLoss", "NCALoss", "ContrastiveLoss", "TripletMarginLoss, swap"])
def test_the_metric_level_follows_a_loss_that_met_a_positive(name):
    """Each anchor finds its positive in the memory alone, which not every loss sees."""
    loss = make_loss(WORKS[name](NUM_CLASSES), collect_stats=True)
    loss.memory.queue.add(batch(4, seed=7)[0], torch.arange(4))
    z, before = batch(4)[0], loss.metric_level.item()
    loss(z, torch.arange(4)).backward()
    assert loss.generator.num_negatives == 4 * 3
    assert loss.synthetic_loss > 0
    assert z.grad.isfinite().all()
    assert (loss.metric_level.item() != before) == (name == "ContrastiveLoss")


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

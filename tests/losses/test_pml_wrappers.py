"""PML's SelfSupervisedLoss and CrossBatchMemory around a loss with a generator; otherwise they behave as in PML."""

import copy

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.losses import CrossBatchMemory, SelfSupervisedLoss

NUM_CLASSES, SIZE = 6, 8
LABELS = torch.tensor([3, 5, 3, 0, 5, 0])


def make_loss(wrapped=None):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=0.0)
    loss = HardNegativeGenerationLoss(wrapped or losses.NTXentLoss(), generator, collect_stats=True)
    loss.levels.generator.value.fill_(10.0)
    return loss


def batch(seed, requires_grad=True):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(len(LABELS), SIZE, generator=source).requires_grad_(requires_grad)


def value_of(call):
    torch.manual_seed(7)
    return call()


@pytest.mark.parametrize("symmetric", [True, False])
def test_views_of_unlabelled_samples(symmetric):
    z, views, names = batch(1), batch(2), torch.arange(6)
    loss = SelfSupervisedLoss(make_loss(), symmetric=symmetric)
    found = value_of(lambda: loss(z, views))
    by_hand = make_loss()
    if symmetric:
        expected = value_of(lambda: by_hand(torch.cat([z, views]), names.repeat(2)))
    else:
        expected = value_of(lambda: by_hand(z, names, None, views, names.clone()))
    assert torch.equal(found, expected)
    assert loss.loss.generator.num_negatives == (12 if symmetric else 6) * 5
    found.backward()
    assert all(x.grad.any(dim=1).all() for x in (z, views))
    plain = losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric)
    assert torch.equal(loss.eval()(z, views), plain(z, views))


@pytest.mark.parametrize("symmetric", [True, False])
def test_more_unlabelled_samples_than_classes_of_the_generator(symmetric):
    loss = SelfSupervisedLoss(make_loss(), symmetric=symmetric)
    z, views = torch.randn(7, SIZE, requires_grad=True), torch.randn(7, SIZE)
    with pytest.raises(
        ValueError, match=r"embeddings must be at most 6, .*got 7\. .*largest batch size: num_classes=7"
    ):
        loss(z, views)
    loss(z[:6], views[:6])
    plain = losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric)
    with torch.no_grad():
        assert torch.equal(loss(z, views), plain(z, views))
    assert torch.equal(loss.eval()(z, views), plain(z, views))


def test_memory_acts_as_growing_references():
    memory, by_hand = CrossBatchMemory(make_loss(), SIZE, memory_size=15), make_loss()
    plain, seen = losses.CrossBatchMemory(losses.NTXentLoss(), SIZE, memory_size=15), []
    for step in range(4):
        z = batch(step)
        seen.append(z.detach())
        found = value_of(lambda z=z: memory(z, LABELS))
        plain_value = plain(z, LABELS)
        assert memory.loss.metric_loss == pytest.approx(plain_value.item(), rel=1e-6)
        pairs = plain.create_indices_tuple(z, LABELS, *memory_of(plain), None, do_remove_self_comparisons=True)
        expected = value_of(lambda z=z, pairs=pairs: by_hand(z, LABELS, pairs, *memory_of(plain)))
        torch.testing.assert_close(found, expected)
        found.backward()
        assert z.grad.any(dim=1).all()
    assert torch.equal(memory.embedding_memory, plain.embedding_memory)
    assert torch.equal(memory.label_memory, plain.label_memory)
    z = batch(9)
    assert torch.equal(memory.eval()(z, LABELS), plain(z, LABELS))


def memory_of(memory):
    count = memory.memory_size if memory.has_been_filled else memory.queue_idx
    return memory.embedding_memory[:count], memory.label_memory[:count]


def test_a_memory_with_a_miner_and_a_mask():
    miner = miners.MultiSimilarityMiner()
    memory = CrossBatchMemory(make_loss(), SIZE, memory_size=20, miner=miner)
    plain = losses.CrossBatchMemory(losses.NTXentLoss(), SIZE, memory_size=20, miner=miner)
    mask = torch.tensor([True, False, True, True, False, False])
    for step in range(3):
        z = batch(step)
        memory(z, LABELS, enqueue_mask=mask).backward()
        assert memory.loss.metric_loss == pytest.approx(plain(z, LABELS, enqueue_mask=mask).item(), rel=1e-6)
    assert memory.queue_idx == plain.queue_idx == 9


def memory_state(memory):
    return copy.deepcopy((memory.state_dict(), memory.queue_idx, memory.has_been_filled))


def assert_memory_unchanged(memory, before):
    now = memory_state(memory)
    assert now[1:] == before[1:]
    assert all(torch.equal(value, before[0][name]) for name, value in now[0].items())


@pytest.mark.parametrize("bad", ["nan", "label"])
def test_a_refused_batch_is_not_remembered(bad):
    memory = CrossBatchMemory(make_loss(), SIZE, memory_size=15)
    memory(batch(1), LABELS)
    before = memory_state(memory)
    broken, labels = batch(2, requires_grad=False), LABELS.clone()
    if bad == "nan":
        broken[2, 3] = float("nan")
    else:
        labels[1] = NUM_CLASSES
    with pytest.raises(ValueError, match="finite" if bad == "nan" else "num_classes"):
        memory(broken, labels)
    assert_memory_unchanged(memory, before)
    assert memory(batch(3), LABELS).isfinite()


def test_without_gradients_nothing_is_remembered():
    memory = CrossBatchMemory(make_loss(), SIZE, memory_size=15)
    memory(batch(1), LABELS)
    before = memory_state(memory)
    with torch.no_grad():
        memory(batch(2), LABELS)
    assert_memory_unchanged(memory, before)


@pytest.mark.parametrize("kind", [SelfSupervisedLoss, lambda loss: CrossBatchMemory(loss, SIZE)])
def test_losses_that_pml_refuses_are_refused_inside_a_wrapper(kind):
    for wrapped in (losses.NPairsLoss(), losses.ProxyAnchorLoss(NUM_CLASSES, SIZE)):
        for loss in (wrapped, make_loss(wrapped)):
            with pytest.raises(TypeError, match=f"does not take {type(wrapped).__name__}. (Call|Give) the loss"):
                kind(loss)
    assert kind(losses.NTXentLoss()).eval()  # as PML's


def test_wrappers_are_instances_of_pmls():
    memory = CrossBatchMemory(make_loss(), SIZE, memory_size=15)
    assert isinstance(memory, losses.CrossBatchMemory)
    assert DistributedLossWrapper(memory).loss is memory
    with pytest.raises(ValueError, match="has its generator already"):
        make_loss(memory)


@pytest.mark.parametrize("name", sorted(set(losses.CrossBatchMemory.supported_losses())))
def test_every_loss_that_pml_takes(name):
    memory = CrossBatchMemory(make_loss(getattr(losses, name)()), SIZE, memory_size=15)
    for step in range(3):
        value = memory(batch(step), LABELS)
        value.backward()
        assert value.isfinite()
    if name in losses.SelfSupervisedLoss.supported_losses():
        SelfSupervisedLoss(make_loss(getattr(losses, name)()))(batch(1), batch(2)).backward()

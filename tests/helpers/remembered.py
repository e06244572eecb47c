"""A loss with a memory, and batches for it."""

import torch
from pytorch_metric_learning import losses

from helpers.every_loss import NUM_CLASSES, SIZE
from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LEVEL, GENERATOR_LEVEL, BETA = 3.0, 14.0, 20.0


def make_loss(wrapped=None, *, memory_size=20, num_layers=1, **kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=num_layers, num_heads=2, dropout=0.0)
    loss = HardNegativeGenerationLoss(
        wrapped or losses.ContrastiveLoss(), generator, beta=BETA, memory_size=memory_size, **kwargs
    ).double()
    loss.levels.metric.value.fill_(LEVEL)
    loss.levels.generator.value.fill_(GENERATOR_LEVEL)
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
    loss, (old, old_labels) = make_loss(wrapped, collect_stats=True), batch(6, seed=5)
    loss.memory.queue.add(old, old_labels)
    return loss, old.detach(), old_labels

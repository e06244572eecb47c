"""A small batch with one anchor that has no positive, and a multi-similarity loss wrapped with a seeded generator."""

import torch
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 12, 8
LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0])
NUM_NEGATIVES, SKIPPED = 7 * 3, 1


def make_loss(make=losses.MultiSimilarityLoss, dropout=0.0, **kwargs):
    torch.manual_seed(0)
    wrapped = make()
    generator = GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=dropout)
    return HardNegativeGenerationLoss(wrapped, generator, **kwargs)


def proxy_anchor():
    return losses.ProxyAnchorLoss(NUM_CLASSES, SIZE)

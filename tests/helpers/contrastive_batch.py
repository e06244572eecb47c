"""A small batch of skewed class sizes, and a contrastive loss wrapped with a seeded generator for it."""

import torch
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

NUM_CLASSES, SIZE = 9, 8
LABELS = torch.tensor([3, 7, 3, 0, 5, 3, 7, 0])


def generator_of(**kwargs):
    torch.manual_seed(0)
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=0.0, **kwargs)


def make_loss(wrapped=None, **kwargs):
    return HardNegativeGenerationLoss(wrapped or losses.ContrastiveLoss(), generator_of(), **kwargs)

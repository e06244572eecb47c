"""Loops that train a trunk beside a loss, and their warnings."""

import warnings

import torch
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LABELS = torch.tensor([0, 0, 4, 4, 7, 7])


def make_loss():
    return HardNegativeGenerationLoss(losses.NPairsLoss(), GlobalCorrelationGenerator(9, 8, num_layers=1, num_heads=2))


def train(loss, optimizers, batches, step_every=1):
    """Warnings about the optimizer, from a loop over batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in range(batches):
            z = optimizers[0].param_groups[0]["params"][0]
            loss(z.detach() + torch.randn(6, 8) + 0 * z.sum(), LABELS).backward()
            if (batch + 1) % step_every == 0:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    return [str(w.message) for w in caught if "HardNegativeGenerationLoss" in str(w.message)]


def trunk_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(6, 8))], lr=0.1)

"""A generator whose graph is small and whose parameters are all at work."""

import torch

from pml_gca import GlobalCorrelationGenerator


def small_generator(**kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(6, 16, **{"dropout": 0.0, **kwargs})
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator

"""Hypothesis strategies for batches of any composition, and small generators."""

import torch
from hypothesis import strategies as st

from pml_gca import GlobalCorrelationGenerator

NUM_CLASSES = 15
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@st.composite
def labels(draw, min_classes=1, max_classes=12, max_samples=6):
    """1 to 12 classes of 1 to 6 samples each, in any order, as a long tensor."""
    classes = draw(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=min_classes, max_size=max_classes, unique=True))
    batch = [label for label in classes for _ in range(draw(st.integers(1, max_samples)))]
    return torch.tensor(draw(st.permutations(batch)))


@st.composite
def generators(draw, dropout=0.0, max_layers=3, sizes=(8, 12, 16, 24, 32, 48, 64)):
    """A generator of 1 to 3 layers and 8 to 64 channels, in float64, with varied normalisation scales."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    generator = GlobalCorrelationGenerator(
        NUM_CLASSES,
        draw(st.sampled_from(sizes)),
        num_layers=draw(st.integers(1, max_layers)),
        num_heads=draw(st.sampled_from((1, 2, 4))),
        dropout=dropout,
    ).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def embeddings(generator, count, seed=0, dtype=torch.float64, device="cpu"):
    """(count, D) random embeddings of varied lengths that require gradient."""
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(count, generator.embedding_size, generator=source, dtype=torch.float64)
    z = z * torch.rand(count, 1, generator=source, dtype=torch.float64).add(0.2)
    return z.to(device, dtype).requires_grad_()


def small_generator(**kwargs):
    torch.manual_seed(0)
    generator = GlobalCorrelationGenerator(6, 16, **{"dropout": 0.0, **kwargs})
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator

import pytest
import torch


@pytest.fixture
def z():
    """Return 8 embeddings of 8 channels, the same in every test."""
    torch.manual_seed(1)
    return torch.randn(8, 8, requires_grad=True)

"""Globally correlation-aware hard negative generation (GCA-HNG) for pytorch-metric-learning."""

__version__ = "0.1.0"

from .generators import GlobalCorrelationGenerator, SyntheticNegatives
from .losses import HardNegativeGenerationLoss
from .miners import GlobalCorrelationMiner

__all__ = [
    "GlobalCorrelationGenerator",
    "GlobalCorrelationMiner",
    "HardNegativeGenerationLoss",
    "SyntheticNegatives",
    "__version__",
]

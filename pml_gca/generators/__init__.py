"""Generators of hard negatives."""

from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .constant_generator import ConstantGenerator
from .embedding_expansion_generator import EmbeddingExpansionGenerator
from .global_correlation_generator import GlobalCorrelationGenerator
from .hardness_aware_generator import HardnessAwareGenerator
from .mixup_generator import MixupGenerator
from .random_generator import RandomGenerator
from .symmetrical_synthesis_generator import SymmetricalSynthesisGenerator

__all__ = [
    "BaseGenerator",
    "Batch",
    "ConstantGenerator",
    "EmbeddingExpansionGenerator",
    "GlobalCorrelationGenerator",
    "HardnessAwareGenerator",
    "MixupGenerator",
    "RandomGenerator",
    "SymmetricalSynthesisGenerator",
    "SyntheticNegatives",
]

"""Generators of hard negatives."""

from .base_generator import BaseGenerator, SyntheticNegatives
from .batch import Batch
from .classified_generator import ClassifiedGenerator
from .constant_generator import ConstantGenerator
from .embedding_expansion_generator import EmbeddingExpansionGenerator
from .global_correlation_generator import GlobalCorrelationGenerator
from .hardest_negative_generator import HardestNegativeGenerator
from .hardness_aware_generator import HardnessAwareGenerator
from .mixup_generator import MixupGenerator
from .named_generators import NAMED_GENERATORS
from .random_generator import RandomGenerator
from .symmetrical_synthesis_generator import SymmetricalSynthesisGenerator

__all__ = [
    "NAMED_GENERATORS",
    "BaseGenerator",
    "Batch",
    "ClassifiedGenerator",
    "ConstantGenerator",
    "EmbeddingExpansionGenerator",
    "GlobalCorrelationGenerator",
    "HardestNegativeGenerator",
    "HardnessAwareGenerator",
    "MixupGenerator",
    "RandomGenerator",
    "SymmetricalSynthesisGenerator",
    "SyntheticNegatives",
]

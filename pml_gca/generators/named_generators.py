"""Generators with the settings of their papers, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..utils.validation import Named
from .base_generator import BaseGenerator
from .classified_generator import ClassifiedGenerator
from .constant_generator import ConstantGenerator
from .embedding_expansion_generator import EmbeddingExpansionGenerator
from .global_correlation_generator import GlobalCorrelationGenerator
from .hardest_negative_generator import HardestNegativeGenerator
from .hardness_aware_generator import HardnessAwareGenerator
from .mixup_generator import MixupGenerator
from .random_generator import RandomGenerator
from .symmetrical_synthesis_generator import SymmetricalSynthesisGenerator


def classified_hardest(num_classes: int, embedding_size: int, **options: Any) -> ClassifiedGenerator:
    """Return the hardest real negatives with a linear classifier beside them; `options` are the classifier's."""
    return ClassifiedGenerator(HardestNegativeGenerator(num_classes, embedding_size), **options)


NAMED_GENERATORS: Named[Callable[..., BaseGenerator]] = Named(
    {
        "gca": GlobalCorrelationGenerator,
        "hardest": classified_hardest,
        "hardest_real": HardestNegativeGenerator,
        "constant": ConstantGenerator,
        "random": RandomGenerator,
        "hdml": HardnessAwareGenerator,
        "hdml_reembed": partial(HardnessAwareGenerator, reembed=True),
        "embedding_expansion": EmbeddingExpansionGenerator,
        "symmetrical_synthesis": SymmetricalSynthesisGenerator,
        "mixup": MixupGenerator,
    }
)
"""Functions of `num_classes` and `embedding_size`; titles are in `pml_gca.names.GENERATORS`.

Without further keywords they have the defaults of their class. `docs/generators.md` describes each.
"""

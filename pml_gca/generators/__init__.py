"""Generators of hard negatives."""

from .base_generator import BaseGenerator, SyntheticNegatives
from .global_correlation_generator import GlobalCorrelationGenerator

__all__ = ["BaseGenerator", "GlobalCorrelationGenerator", "SyntheticNegatives"]

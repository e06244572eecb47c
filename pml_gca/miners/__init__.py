"""Miners that use learned correlations."""

from .global_correlation_miner import GlobalCorrelationMiner

__all__ = ["GlobalCorrelationMiner"]

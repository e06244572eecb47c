"""Samplers for PML's trainers."""

from .m_per_class_covering_sampler import MPerClassCoveringSampler

__all__ = ["MPerClassCoveringSampler"]

"""One batch of several processes."""

from .gathering import gather_batch
from .processes import Gathering, Processes

__all__ = ["Gathering", "Processes", "gather_batch"]

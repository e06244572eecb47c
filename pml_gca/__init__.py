"""Globally correlation-aware hard negative generation (GCA-HNG) for pytorch-metric-learning."""

from typing import TYPE_CHECKING

from .utils.lazy import lazy_attributes

__version__ = "0.2.0"

if TYPE_CHECKING:
    from . import correlation as correlation
    from . import generators as generators
    from . import losses as losses
    from . import miners as miners
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

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "GlobalCorrelationGenerator": "generators",
        "GlobalCorrelationMiner": "miners",
        "HardNegativeGenerationLoss": "losses",
        "SyntheticNegatives": "generators",
        **{name: name for name in ("correlation", "generators", "losses", "miners")},
    },
)

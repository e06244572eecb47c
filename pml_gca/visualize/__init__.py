"""Figures of training runs and their logs, synthetic negatives and retrieval results.

The plots need matplotlib: `pip install 'pml-gca[examples]'`. Each returns a `matplotlib.figure.Figure`. They do
not use pyplot: no display is needed and no global state changes. Save a figure with
`figure.savefig("curves.png", dpi=200)`.
"""

from .curves import Run, plot_curves
from .dataset_retrieval import choose_queries, plot_dataset_retrieval
from .gains import plot_gains
from .hardness_over_training import hardness, plot_hardness
from .retrieval import OTHER_CLASS, SAME_CLASS, nearest_neighbours, plot_retrieval
from .shared import try_to_save
from .synthetic_negatives import EmbeddingPanel, plot_synthetic_negatives
from .training_logs import plot_logs

__all__ = [
    "OTHER_CLASS",
    "SAME_CLASS",
    "EmbeddingPanel",
    "Run",
    "choose_queries",
    "hardness",
    "nearest_neighbours",
    "plot_curves",
    "plot_dataset_retrieval",
    "plot_gains",
    "plot_hardness",
    "plot_logs",
    "plot_retrieval",
    "plot_synthetic_negatives",
    "try_to_save",
]

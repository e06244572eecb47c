"""Figures for training runs, for synthetic negatives and for retrieval results.

The plots need matplotlib, which ``pip install 'pml-gca[examples]'`` brings. They are drawn on
``matplotlib.figure.Figure`` objects, without pyplot: no display is needed and no global state is changed.
Save one with ``figure.savefig("curves.png", dpi=200)``.
"""

from .bars import plot_gains
from .curves import Run, plot_curves
from .dataset_retrieval import choose_queries, plot_dataset_retrieval
from .embedding_map import EmbeddingPanel, plot_synthetic_negatives
from .hardness_bands import hardness, plot_hardness
from .retrieval import OTHER_CLASS, SAME_CLASS, nearest_neighbours, plot_retrieval
from .saving import try_to_save

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
    "plot_retrieval",
    "plot_synthetic_negatives",
    "try_to_save",
]

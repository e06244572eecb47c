"""Figures for training runs and for retrieval results.

The plots need matplotlib, which ``pip install 'pml-gca[examples]'`` brings. They are drawn on
``matplotlib.figure.Figure`` objects, without pyplot: no display is needed and no global state is changed.
Save one with ``figure.savefig("curves.png", dpi=200)``.
"""

from .curves import Run, plot_curves
from .retrieval import OTHER_CLASS, SAME_CLASS, nearest_neighbours, plot_retrieval

__all__ = ["OTHER_CLASS", "SAME_CLASS", "Run", "nearest_neighbours", "plot_curves", "plot_retrieval"]

"""Small cells and results for the tests of the comparison."""

import csv
from dataclasses import replace
from pathlib import Path

from comparison.cells import Cell
from comparison.registry import ALL
from comparison.study import METRICS

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"

SMALL = ["--losses", "n_pairs", "--generators", "none", "constant", "--processes", "1", "--embedding-size", "8"]
SMALL += ["--image-size", "16"]
SMALL += ["--trials", "2", "--trial-iterations", "2", "--iterations", "3", "--evaluate-every", "2", "--seeds", "1"]
COMMON = {
    "iterations": 2,
    "embedding_size": 8,
    "image_size": 16,
    "classes_per_batch": 4,
    "samples_per_class": 3,
    "evaluate_every": 2,
    "augment": True,
}


def cell(contender="none", settings=None, **changes):
    settings = {**COMMON, "lr": 1e-3, **ALL[contender].settings, **(settings or {})}
    return replace(Cell("tune", "proxy_anchor", contender, 0, settings), **changes)


def result(recall=0.5, reached=(0.1, 0.2, 0.4)):
    """What training gives."""
    history = {"iterations": [0, 50, 100], "seconds": [0.0, 1.0, 2.0], "recall_at_1": list(reached)}
    metrics = {**dict.fromkeys(METRICS, 0.1), "recall_at_1": recall}
    return {"val_recall_at_1": recall, "seconds": 2.0, "history": history, "metrics": metrics}


def rows(file):
    """The fields of a table as they are written."""
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))

"""Graphs that processes share, and batches."""

from dataclasses import replace

import torch

from helpers.every_loss import NUM_CLASSES, SIZE
from pml_gca import GlobalCorrelationGenerator
from pml_gca.distributed.processes import find_processes
from pml_gca.generators import ClassifiedGenerator, HardestNegativeGenerator

MIXED = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
LAYOUTS = {  # by world size: name, labels in the order of ranks, rows of each rank
    2: {
        "even": (MIXED, [6, 6]),
        "uneven, odd": (MIXED[:11], [7, 4]),
        "empty": (MIXED, [0, 12]),
        "two rows": ([0, 0], [1, 1]),
        "one row": ([0], [1, 0]),
        "nothing": ([], [0, 0]),
        "singletons": (list(range(8)), [4, 4]),
    },
    3: {
        "uneven": (MIXED, [3, 8, 1]),
        "odd": ([*MIXED, 0], [0, 12, 1]),
        "fewer rows than processes": ([1, 1], [2, 0, 0]),
    },
    4: {"uneven and empty": (MIXED, [5, 0, 1, 6]), "odd": ([*MIXED, 4, 4, 4], [4, 4, 4, 3])},
}


def gca(**options):
    torch.manual_seed(5)
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, **{"num_layers": 2, "num_heads": 2, **options})


def classified():
    torch.manual_seed(5)
    return ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE), num_layers=2)


GENERATORS = {
    "one layer": lambda: gca(num_layers=1),
    "no layer": lambda: gca(num_layers=0),
    "three layers in chunks": lambda: gca(num_layers=3, edge_chunk_size=4),
    "equal weights": lambda: gca(merging="mean"),
    "classified": classified,
}


def in_shares(batch):
    """The batch of all processes, which share its graph."""
    return replace(batch, processes=find_processes())

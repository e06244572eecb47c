"""Where PML's DistributedLossWrapper is exact, without gathering; elsewhere it warns."""

import warnings

import torch
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

from helpers.compared import GENERATORS
from helpers.gathering.steps import alone, average, differences, kept, make_loss, make_trunk, own_rows

MIXED = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
EXACT = (  # with a generator that has neither parameters nor draws, and compares all samples of a class
    "AngularLoss",
    "ContrastiveLoss",
    "HistogramLoss",
    "NCALoss",
    "TripletMarginLoss",
)
CASES_OF_WRAPPER = [
    *(("hardest", name, False) for name in (*EXACT, "MultipleLosses", "NPairsLoss", "TripletMarginLoss, drawn")),
    ("hardest", "ProxyAnchorLoss", False),  # it has parameters
    ("hardest", "ContrastiveLoss", True),
    ("constant", "ContrastiveLoss", False),  # distances to the next positive
    ("random", "ContrastiveLoss", False),
    ("GCA-HNG", "ContrastiveLoss", False),
]


def in_wrapper(rank, world, generator, name, efficient):
    """Return what a step leaves behind, and the warnings of two steps."""
    trunk, loss = make_trunk(), make_loss(name, generator=generator, gather=False)
    wrapper = DistributedLossWrapper(loss, efficient=efficient)
    x, y = own_rows(MIXED, [12 // world] * world, rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(rank)
        value = wrapper(trunk(x), y)
        value.backward()
        average([*trunk.parameters(), *loss.parameters()])
        found = kept(value / world, trunk, loss)
        found["log of embedding_gradient_norm"] /= world
        wrapper(trunk(x), y)
    return found, [str(w.message) for w in caught if "DistributedLossWrapper" in str(w.message)]


def where_the_wrapper_is_right(rank, world):
    """No warning where all is exact, one where something is not."""
    for kind, name, efficient in CASES_OF_WRAPPER:
        make = GENERATORS.get(kind)
        title = f"{kind}, {name}, efficient {efficient}"
        found, messages = in_wrapper(rank, world, make, name, efficient)
        wrong = list(differences(title, found, alone(MIXED, name, generator=make)))
        is_exact = kind == "hardest" and name in EXACT and not efficient
        if len(messages) != (not is_exact):
            yield f"{title}: warned {len(messages)} times"
        if bool(wrong) == is_exact:
            yield f"{title}: wrong in {wrong}"


def in_evaluation(rank, world):
    """PML's wrapper gives W times the value."""
    loss = make_loss("ContrastiveLoss", gather=False).eval()
    x, y = own_rows(MIXED, [12 // world] * world, rank)
    rows = nn.functional.pad(x, (0, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            DistributedLossWrapper(loss)(rows, y)
    if [f"its value is {world} times that of the loss" in str(w.message) for w in caught] != [True]:
        yield f"{[str(w.message) for w in caught]}"


CASES = (where_the_wrapper_is_right, in_evaluation)

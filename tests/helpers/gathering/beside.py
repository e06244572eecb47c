"""What a loss takes beside rows, references and mined pairs; and what the processes exchange."""

import torch
import torch.distributed as dist
from pytorch_metric_learning.miners import MultiSimilarityMiner

from helpers.gathering.steps import (
    average,
    differences,
    draw,
    kept,
    make_loss,
    make_rows,
    make_trunk,
    own_rows,
)
from helpers.gathering.values import LAYOUTS
from pml_gca import GlobalCorrelationMiner
from pml_gca.distributed import gather_batch

LABELS, SIZES = LAYOUTS[2]["uneven"]


def references(rank, world):
    """Each process has references of its own; or the batch itself, which is how PML says that there are none."""
    x, y = make_rows(LABELS)
    others, other_labels = make_rows([5, 0, 1, 1, 2], seed=9)
    for given in ("labelled", "unlabelled", "batch"):
        found = []
        for gather in (True, False):
            trunk, loss = make_trunk(), make_loss(gather=gather, name="ContrastiveLoss")
            mine = torch.arange(len(y)).split(SIZES)[rank] if gather else slice(None)
            own = torch.arange(5).split([0, 5])[rank] if gather else slice(None)
            rows, labels = trunk(x[mine]), y[mine]
            refs, ref_labels = (rows, labels) if given == "batch" else (trunk(others[own]), other_labels[own])
            indices = None
            if given == "unlabelled":
                ref_labels, indices = None, tuple(torch.tensor(rows) for rows in ([0, 4], [2, 3], [1], [0]))
            draw(3, rank, gather)
            value = loss(rows, labels, indices, refs, ref_labels)
            value.backward()
            if gather:
                average(trunk.parameters())
            found.append(kept(value, trunk, loss))
        yield from differences(given, *found)


def mined(rank, world):
    """Miners of the global batch, and a loss that takes what they mine."""
    x, y = make_rows(LABELS)
    for kind in ("ours", "PML's"):
        found = []
        for gather in (True, False):
            trunk, loss = make_trunk(), make_loss(gather=gather)
            rows, labels = own_rows(LABELS, SIZES, rank) if gather else (x, y)
            rows = trunk(rows)
            if kind == "ours":
                indices = GlobalCorrelationMiner(loss.generator, gather_across_devices=gather)(rows, labels)
            else:
                batch = gather_batch(rows, labels) if gather else (rows.detach(), labels)
                indices = MultiSimilarityMiner()(*batch)
            draw(4, rank, gather)
            value = loss(rows, labels, indices)
            value.backward()
            if gather:
                average(trunk.parameters())
            found.append(kept(value, trunk, loss) | {f"indices {i}": part for i, part in enumerate(indices)})
        yield from differences(f"{kind} miner", *found)


def mined_after_drift(rank, world):
    """A process whose parameters have drifted mines what the first one mines."""
    x, y = make_rows(LABELS)
    rows, generator = make_trunk()(x), make_loss().generator
    alone = GlobalCorrelationMiner(generator, negatives_per_anchor=2)
    miner = GlobalCorrelationMiner(generator, negatives_per_anchor=2, gather_across_devices=True)
    mine = torch.arange(len(y)).split(SIZES)[rank]
    expected = alone(rows, y)
    miner(rows[mine], y[mine])
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(rank * torch.randn_like(p))
    for is_same, found in ((True, miner(rows[mine], y[mine])), (rank == 0, alone(rows, y))):
        if all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) != is_same:
            yield f"the same indices as the first process's: {not is_same}"


def collectives(rank, world):
    """Three of a step: numbers, rows, labels; five with references. The first step has more."""
    loss = make_loss()
    x, y = own_rows(LABELS, SIZES, rank)
    rows = make_trunk()(x)
    counts = Counted()
    with counts:
        loss(rows, y).backward()
    first, counts.found = counts.found, []
    with counts:
        loss(rows.detach(), y).backward()
    if counts.found != ["all_gather"] * 3:
        yield f"a step: {counts.found}"
    if first[1:3] != ["broadcast"] * 2 or len(first) != 5:
        yield f"the first step: {first}"
    counts.found = []
    with counts, torch.no_grad():
        loss(rows, y, None, rows[:3], y[:3])
    if counts.found != ["all_gather"] * 5:
        yield f"references: {counts.found}"


class Counted:
    """Notes every collective of torch.distributed that is called."""

    NAMES = ("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast")

    def __init__(self):
        self.found = []

    def __enter__(self):
        self.before = {name: getattr(dist, name) for name in self.NAMES}
        for name, function in self.before.items():
            setattr(dist, name, self.noting(name, function))

    def noting(self, name, function):
        def call(*args, **kwargs):
            self.found.append(name)
            return function(*args, **kwargs)

        return call

    def __exit__(self, *_):
        for name, function in self.before.items():
            setattr(dist, name, function)


def random_state(rank, world):
    """A step draws one number of the process's own generator, and no more."""
    x, y = own_rows(LABELS, SIZES, rank)
    loss, rows = make_loss(), make_trunk()(x)
    torch.manual_seed(rank)
    loss(rows, y)
    state = torch.get_rng_state()
    torch.manual_seed(rank)
    torch.empty((), dtype=torch.long).random_()
    if not torch.equal(state, torch.get_rng_state()):
        yield "other draws than one"


CASES = (
    references,
    mined,
    mined_after_drift,
    collectives,
    random_state,
)

"""Values, gradients and statistics of whole steps."""

from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel

from helpers.compared import GENERATORS
from helpers.every_loss import WORKS
from helpers.gathering.steps import (
    alone,
    differences,
    draw,
    make_loss,
    make_rows,
    make_trunk,
    own_rows,
    same_everywhere,
    step,
)
from helpers.processes import once
from pml_gca.generators import ClassifiedGenerator

MIXED = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
LAYOUTS = {  # by world size: name, labels in the order of ranks, rows of each rank
    2: {
        "even": (MIXED, [6, 6]),
        "uneven": (MIXED, [7, 5]),
        "empty": (MIXED, [0, 12]),
        "one class": ([0] * 6 + [1, 2, 3, 1, 2, 3], [6, 6]),
        "nothing": ([], [0, 0]),
        "singletons": (list(range(8)), [4, 4]),
    },
    3: {"uneven": (MIXED, [3, 8, 1]), "two empty": (MIXED, [0, 12, 0])},
    4: {"even": (MIXED, [3] * 4), "uneven and empty": (MIXED, [5, 0, 1, 6])},
}


def compared(cases, rank, world):
    """Take steps, all processes the same to the bit; each process compares its share of them with one process."""
    for i, (title, (labels, sizes), name, options) in enumerate(cases):
        found = step(rank, sizes, labels, name, **options)
        yield from same_everywhere(title, found.values())
        if i % world == rank:
            yield from differences(title, found, alone(labels, name, **options))


def losses_everywhere(rank, world):
    """Value, gradients, statistics and levels are those of one process."""
    cases = []
    for title, (labels, sizes) in LAYOUTS[world].items():
        names = WORKS if title == "uneven" and world == 2 else ("MultiSimilarityLoss", "NPairsLoss", "ProxyAnchorLoss")
        for name in names:
            cases.append((f"{title}, {name}", (labels, sizes), name, {}))
    yield from compared(cases, rank, world)


def trained(rank, make_optimizer, labels, sizes, gather, outer, **options):
    """Return trunk, loss and optimizer after ten steps."""
    trunk, loss = make_trunk(), make_loss(gather=gather, **options)
    modules = (trunk, loss)
    if gather:
        modules = DistributedDataParallel(trunk), DistributedDataParallel(loss) if outer else loss
    optimizer = make_optimizer([*trunk.parameters(), *loss.parameters()], lr=1e-3)
    for i in range(10):
        x, y = own_rows(labels, sizes, rank, seed=i) if gather else make_rows(labels, seed=i)
        optimizer.zero_grad()
        draw(i, rank, gather)
        modules[1](modules[0](x), y).backward()
        optimizer.step()
    return {f"trunk.{n}": x for n, x in trunk.state_dict().items()} | loss.state_dict()


def optimizers(rank, world):
    """After ten steps all processes are equal to the bit, and near one process; with and without an outer wrapper."""
    labels, sizes = LAYOUTS[world]["uneven" if world < 4 else "even"]
    for make_optimizer in (torch.optim.AdamW, torch.optim.SGD):
        expected = once(partial(trained, rank, make_optimizer, labels, sizes, False, False))
        for outer in (False, True)[: 2 if make_optimizer is torch.optim.SGD and world == 2 else 1]:
            title = f"{make_optimizer.__name__}, wrapped {outer}"
            found = trained(rank, make_optimizer, labels, sizes, True, outer)
            yield from same_everywhere(title, found.values())
            yield from differences(title, found, expected, rtol=1e-7)


def every_generator(rank, world):
    """Whatever a generator draws, all processes draw the same."""
    makers = GENERATORS | {"classified": lambda: ClassifiedGenerator(GENERATORS["hardest"](), num_layers=1)}
    layout = LAYOUTS[2]["uneven"]
    cases = [(name, layout, "MultiSimilarityLoss", {"generator": make}) for name, make in makers.items()]
    yield from compared(cases, rank, world)


def narrow(rank, world):
    """Embeddings in half precision, with and without autocast."""
    labels, sizes = LAYOUTS[2]["uneven"]
    x, y = make_rows(labels)
    rows = torch.cat([x, x[:, :3]], dim=1)
    mine = torch.arange(len(y)).split(sizes)[rank]
    for dtype, cast in ((torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16)):
        found = []
        for gather in (True, False):
            loss = make_loss(gather=gather).float()
            own = rows.to(dtype)[mine if gather else slice(None)].clone().requires_grad_()
            with torch.autocast("cpu", dtype=cast, enabled=cast is not None):
                draw(5, rank, gather)
                value = loss(own, y[mine] if gather else y)
            value.backward()
            of_mine = own.grad if gather else world * own.grad[mine]
            found.append({"value": value.detach(), "rows": of_mine} | {n: p.grad for n, p in loss.named_parameters()})
        yield from differences(f"{dtype}, autocast {cast}", *found, rtol=1e-6)


CASES = (losses_everywhere, optimizers, every_generator, narrow)

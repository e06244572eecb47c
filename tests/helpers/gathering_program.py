"""What several processes compute of one batch that they gather: the failures of each."""

import traceback

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.every_loss import WORKS
from helpers.gathered import (
    alone,
    differences,
    draws_of_all,
    make_loss,
    make_rows,
    make_trunk,
    same_everywhere,
    step,
)
from helpers.processes import join, start

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


def losses_everywhere(rank, world):
    """Value, gradients, statistics and levels are those of one process."""
    for title, (labels, sizes) in LAYOUTS[world].items():
        names = WORKS if title == "uneven" and world == 2 else ("MultiSimilarityLoss", "NPairsLoss", "ProxyAnchorLoss")
        for name in names:
            yield from differences(f"{title}, {name}", step(rank, sizes, labels, name), alone(labels, name))


def optimizers(rank, world):
    """After ten steps all processes are equal to the bit, and near one process; with and without an outer wrapper."""
    labels, sizes = LAYOUTS[world]["uneven" if world < 4 else "even"]
    for make_optimizer in (torch.optim.AdamW, torch.optim.SGD):
        for outer in (False, True):
            title = f"{make_optimizer.__name__}, wrapped {outer}"
            trained = []
            for gather in (True, False):
                trunk, loss = make_trunk(), make_loss(gather=gather)
                modules = (trunk, loss)
                if gather:
                    modules = (DistributedDataParallel(trunk), DistributedDataParallel(loss) if outer else loss)
                parameters = [*trunk.parameters(), *loss.parameters()]
                optimizer = make_optimizer(parameters, lr=1e-3)
                for i in range(10):
                    x, y = make_rows(labels, seed=i)
                    mine = torch.arange(len(y)).split(sizes)[rank] if gather else slice(None)
                    optimizer.zero_grad()
                    if gather:
                        torch.manual_seed(i + rank)
                        value = modules[1](modules[0](x[mine]), y[mine])
                    else:
                        with draws_of_all(i):
                            value = loss(trunk(x), y)
                    value.backward()
                    optimizer.step()
                if gather:
                    yield from same_everywhere(title, [*parameters, *loss.buffers()])
                names = [f"{i}" for i in range(len(parameters))]
                trained.append({name: p.detach() for name, p in zip(names, parameters, strict=True)})
            yield from differences(title, *trained, rtol=1e-7)


CASES = (losses_everywhere, optimizers)


def run(rank, world, folder):
    join(rank, world, folder)
    failures = []
    for case in CASES:
        try:
            failures += [f"{case.__name__}: {failure}" for failure in case(rank, world)]
        except Exception:
            failures.append(f"{case.__name__}: {traceback.format_exc()}")
            break  # the others wait elsewhere
    dist.destroy_process_group()
    return failures


if __name__ == "__main__":
    start(run)

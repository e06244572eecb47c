"""What processes compute of a graph that they share, against one process."""

from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel

from helpers.every_loss import SIZE
from helpers.gathering.steps import (
    alone,
    average,
    differences,
    draw,
    kept,
    make_loss,
    make_rows,
    make_trunk,
    own_rows,
    same_everywhere,
    step,
)
from helpers.gathering.values import trained
from helpers.processes import once
from helpers.sharding.graphs import GENERATORS, LAYOUTS, MIXED, gca, in_shares
from pml_gca.correlation import propagation


def losses_everywhere(rank, world):
    """Value, gradients, statistics and levels are those of one process, with random merging and dropout."""
    families = ("MultiSimilarityLoss", "NPairsLoss", "ProxyAnchorLoss")
    for number, (title, (labels, sizes)) in enumerate(LAYOUTS[world].items()):
        for name in families if number == 0 else (families[number % 3],):
            found = step(rank, sizes, labels, name, generator=gca, shard_edges=True)
            expected = once(partial(alone, labels, name, generator=gca))
            yield from differences(f"{title}, {name}", found, expected)
            yield from same_everywhere(f"{title}, {name}", found.values())


def generators(rank, world):
    """So it is with every generator that has a graph, swept or as the equations stand."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    for title, make in GENERATORS.items():
        found = step(rank, sizes, labels, generator=make, shard_edges=True)
        yield from differences(title, found, once(partial(alone, labels, generator=make)))
    swept, propagation.propagate_in_sweeps = propagation.propagate_in_sweeps, None
    try:
        for layout, (labels, sizes) in LAYOUTS[world].items():
            found = step(rank, sizes, labels, generator=gca, shard_edges=True)
            expected = once(partial(alone, labels, generator=gca))
            yield from differences(f"not swept, {layout}", found, expected)
    finally:
        propagation.propagate_in_sweeps = swept


def wrappers(rank, world):
    """DistributedDataParallel around the loss changes nothing, nor do `no_sync` and two batches before a backward.

    The later batches see a memory of those before.
    """
    labels, sizes = next(iter(LAYOUTS[world].values()))
    x, y = make_rows(labels)
    mine = torch.arange(len(y)).split(sizes)[rank]
    for title in ("synchronised", "no_sync"):
        memory = {} if title == "synchronised" else {"memory_size": 15}
        trunk, loss = make_trunk(), make_loss(generator=gca, shard_edges=True, **memory)
        module = DistributedDataParallel(loss)
        torch.manual_seed(77 + rank)
        with nullcontext() if title == "synchronised" else module.no_sync():
            module(trunk(x[mine]), y[mine]).backward()
        if title == "no_sync":
            first, value = module(trunk(x[mine].flip(1)), y[mine]), module(trunk(-x[mine]), y[mine])
            (first + value).backward()
        average(trunk.parameters())
        found = kept(torch.zeros(()), trunk, loss)
        trunk, loss = make_trunk(), make_loss(generator=gca, gather=False, **memory)
        torch.manual_seed(77)
        seeds = [int(torch.empty((), dtype=torch.long).random_()) for _ in range(3)]
        for inputs, seed in list(zip((x, x.flip(1), -x), seeds, strict=True))[: 1 if title == "synchronised" else 3]:
            torch.manual_seed(seed)
            loss(trunk(inputs), y).backward()
        yield from differences(title, found, kept(torch.zeros(()), trunk, loss))


def optimizers(rank, world):
    """After ten steps all processes are equal to the bit, and near one process."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    for make_optimizer in (torch.optim.AdamW, torch.optim.SGD):
        expected = once(partial(trained, rank, make_optimizer, labels, sizes, False, False, generator=gca))
        found = trained(rank, make_optimizer, labels, sizes, True, False, generator=gca, shard_edges=True)
        yield from same_everywhere(make_optimizer.__name__, found.values())
        yield from differences(make_optimizer.__name__, found, expected, rtol=1e-7)


def phases(rank, world):
    """Both halves of an alternating schedule are those of one process, with its parameters stepped in between."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    results = []
    for shared in (True, False):
        trunk, loss = make_trunk(), make_loss(generator=gca, gather=shared, shard_edges=shared)
        x, y = own_rows(labels, sizes, rank) if shared else make_rows(labels)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
        results.append({})
        for seed, phase in enumerate(("embedding", "generation")):
            rows = trunk(x) if phase == "embedding" else trunk(x).detach()
            draw(seed, rank, gather=shared)
            with loss.phase(phase):
                value = loss(rows, y)
            optimizer.zero_grad()
            value.backward()
            if phase == "embedding" and shared:
                average(trunk.parameters())
            results[-1] |= {f"{phase}, {name}": found for name, found in kept(value, trunk, loss).items()}
            optimizer.step()
    yield from differences("phases", *results)


def gradients(shared, second=False, **options):
    """Gradients of all that a generator returns for rows of which the last may be a memory."""
    loss = make_loss(generator=gca, gather=False)
    torch.manual_seed(9)
    rows, labels = torch.randn(11, SIZE, dtype=torch.float64, requires_grad=True), torch.tensor(MIXED[:11])
    batch = loss.generator.batch(rows, labels, **options)
    torch.manual_seed(9)
    negatives = loss.generator.generate(in_shares(batch) if shared else batch, 4.0)
    value = negatives.embeddings.square().sum() + sum(negatives.objectives.values())
    if second:
        value = torch.autograd.grad(value, rows, create_graph=True)[0].square().sum()
    value.backward()
    found = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return {"rows": rows.grad, **found, **dict(loss.named_buffers())}


def directly(rank, world):
    """So it is with references and a memory, and where `create_graph=True` takes plain forms."""
    cases = {
        "second derivatives": {"second": True},
        "references": {"num_anchors": 7},
        "memory": {"num_anchors": 6, "num_memory": 5},
        "second derivatives with a memory": {"second": True, "num_anchors": 7, "num_memory": 4},
    }
    for title, options in cases.items():
        expected = once(partial(gradients, False, **options))
        yield from differences(title, gradients(True, **options), expected)


CASES = (losses_everywhere, generators, wrappers, optimizers, phases, directly)

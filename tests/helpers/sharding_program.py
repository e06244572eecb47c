"""What several processes compute of one graph that they share: the failures of each."""

import traceback
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers.counters import MultiplyAdds
from helpers.every_loss import NUM_CLASSES, SIZE
from helpers.gathered import (
    alone,
    average,
    differences,
    draws_of_all,
    kept,
    make_loss,
    make_rows,
    make_trunk,
    same_everywhere,
    step,
)
from helpers.processes import join, start
from pml_gca import GlobalCorrelationGenerator
from pml_gca.correlation import propagation
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


def losses_everywhere(rank, world):
    """Value, gradients, statistics and levels are those of one process, with random merging and dropout."""
    families = ("MultiSimilarityLoss", "NPairsLoss", "ProxyAnchorLoss")
    for number, (title, (labels, sizes)) in enumerate(LAYOUTS[world].items()):
        for name in families if number == 0 else (families[number % 3],):
            found = step(rank, sizes, labels, name, generator=gca(), shard_edges=True)
            yield from differences(f"{title}, {name}", found, alone(labels, name, generator=gca()))
            yield from same_everywhere(f"{title}, {name}", found.values())


def generators(rank, world):
    """So it is with every generator that has a graph, swept or as the equations stand."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    for title, make in GENERATORS.items():
        found = step(rank, sizes, labels, generator=make(), shard_edges=True)
        yield from differences(title, found, alone(labels, generator=make()))
    swept, propagation.propagate_in_sweeps = propagation.propagate_in_sweeps, None
    try:
        for layout, (labels, sizes) in LAYOUTS[world].items():
            found = step(rank, sizes, labels, generator=gca(), shard_edges=True)
            yield from differences(f"not swept, {layout}", found, alone(labels, generator=gca()))
    finally:
        propagation.propagate_in_sweeps = swept


def wrappers(rank, world):
    """DistributedDataParallel around the loss changes nothing, nor do `no_sync` and two batches before a backward."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    x, y = make_rows(labels)
    mine = torch.arange(len(y)).split(sizes)[rank]
    for title in ("synchronised", "no_sync"):
        trunk, loss = make_trunk(), make_loss(generator=gca(), shard_edges=True)
        module = DistributedDataParallel(loss)
        torch.manual_seed(77 + rank)
        with nullcontext() if title == "synchronised" else module.no_sync():
            module(trunk(x[mine]), y[mine]).backward()
        if title == "no_sync":
            first, value = module(trunk(x[mine].flip(1)), y[mine]), module(trunk(-x[mine]), y[mine])
            (first + value).backward()
        average(trunk.parameters())
        found = kept(torch.zeros(()), trunk, loss)
        trunk, loss = make_trunk(), make_loss(generator=gca(), gather=False)
        torch.manual_seed(77)
        seeds = [int(torch.empty((), dtype=torch.long).random_()) for _ in range(3)]
        for inputs, seed in list(zip((x, x.flip(1), -x), seeds, strict=True))[: 1 if title == "synchronised" else 3]:
            torch.manual_seed(seed)
            loss(trunk(inputs), y).backward()
        yield from differences(title, found, kept(torch.zeros(()), trunk, loss))


def phases(rank, world):
    """Both halves of an alternating schedule are those of one process, with its parameters stepped in between."""
    labels, sizes = next(iter(LAYOUTS[world].values()))
    x, y = make_rows(labels)
    mine = torch.arange(len(y)).split(sizes)[rank]
    for shared in (True, False):
        trunk, loss = make_trunk(), make_loss(generator=gca(), gather=shared, shard_edges=shared)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
        results = {}
        for seed, phase in enumerate(("embedding", "generation")):
            rows, own = (trunk(x[mine]), y[mine]) if shared else (trunk(x), y)
            rows = rows.detach() if phase == "generation" else rows
            with loss.phase(phase):
                if shared:
                    torch.manual_seed(seed + rank)
                    value = loss(rows, own)
                else:
                    with draws_of_all(seed):
                        value = loss(rows, own)
            optimizer.zero_grad()
            value.backward()
            if phase == "embedding" and shared:
                average(trunk.parameters())
            results |= {f"{phase}, {name}": found for name, found in kept(value, trunk, loss).items()}
            optimizer.step()
        if shared:
            found = results
    yield from differences("phases", found, results)


def gradients(shared, second=False, **options):
    """Gradients of all that a generator returns for rows of which the last may be a memory."""
    loss = make_loss(generator=gca(), gather=False)
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
        yield from differences(title, gradients(True, **options), gradients(False, **options))


def in_shares(batch):
    return replace(batch, processes=find_processes())


def counts(rank, world):
    """Values that enter all-reduces, and multiply-adds of a process, are those that `cost` says."""
    exchanged = []
    all_reduce = dist.all_reduce

    def counted_all_reduce(tensor, *args, **kwargs):
        exchanged.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    for make, num_memory in ((gca, 0), (gca, 4), (GENERATORS["three layers in chunks"], 0), (classified, 0)):
        generator = make()
        rows = {2: 12, 3: 12, 4: 15}[world]  # the mean over processes of their edges is a whole number
        labels = torch.arange(rows + num_memory) // 3
        z = torch.randn(len(labels), SIZE, generator=torch.Generator().manual_seed(rows)).requires_grad_()
        del exchanged[:]
        dist.all_reduce = counted_all_reduce
        try:
            with MultiplyAdds() as counted:
                batch = generator.batch(z, labels, rows, num_memory=num_memory)
                negatives = generator.generate(in_shares(batch))
                (sum(negatives.objectives.values()) + negatives.embeddings.sum()).backward()
        finally:
            dist.all_reduce = all_reduce
        cost = generator.cost(rows, 3, num_processes=world, memory_size=num_memory)
        if sum(exchanged) != cost.exchanged_values:
            yield f"{rows} rows: {sum(exchanged)} values are exchanged, not {cost.exchanged_values}"
        total = torch.tensor(counted.total)
        all_reduce(total)
        if total != world * cost.multiply_adds and make is not classified:  # which compares negatives as well
            yield f"{rows} rows: {total / world} multiply-adds, not {cost.multiply_adds}"


def refusals(rank, world):
    """What cannot be shared is refused in every process."""
    x, y = make_rows(MIXED)
    trunk, loss = make_trunk(), make_loss(generator=gca(), shard_edges=rank == 0)
    compiled = make_loss(generator=gca(), shard_edges=True)
    compiled.generator.propagation.compile(backend="eager")
    cases = (loss, "what is computed must be the same in all processes"), (compiled, "a compiled propagation cannot")
    for refused, words in cases:
        before = {name: x.clone() for name, x in refused.state_dict().items()}
        try:
            refused(trunk(x), y)
            yield f"{words}: was not refused"
        except (ValueError, RuntimeError) as error:
            if words not in str(error):
                yield f"{words}: {type(error).__name__} {error}"
        yield from differences(words, dict(refused.state_dict()), before, rtol=0)


CASES = (losses_everywhere, generators, wrappers, phases, directly, counts, refusals)


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

"""What processes exchange for a graph that they share, and what they refuse."""

import torch
import torch.distributed as dist

from helpers.counters import MultiplyAdds
from helpers.every_loss import SIZE
from helpers.gathering.steps import differences, make_loss, make_rows, make_trunk
from helpers.sharding.graphs import GENERATORS, MIXED, classified, gca, in_shares


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
    trunk, loss = make_trunk(), make_loss(generator=gca, shard_edges=rank == 0)
    compiled = make_loss(generator=gca, shard_edges=True)
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


def compiled_on_a_cpu(rank, world):
    """Neither the propagation nor a shared step is compiled there, so that nothing changes."""
    found = []
    for compiles in (False, True):
        (x, y), trunk, loss = make_rows(MIXED), make_trunk(), make_loss(generator=gca, shard_edges=True)
        loss.levels.metric.value.fill_(3.0)
        if compiles:
            loss.generator.compile(backend="eager")
        torch.manual_seed(1)
        value = loss(trunk(x), y)
        value.backward()
        parameters = [*trunk.named_parameters(), *loss.named_parameters()]
        found.append({"loss": value.detach(), **{name: p.grad for name, p in parameters if p.grad is not None}})
    yield from differences("compiled", *found, rtol=0)


CASES = (counts, refusals, compiled_on_a_cpu)

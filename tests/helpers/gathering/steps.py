"""A network and a loss in several processes, and what one process computes of the same rows."""

import torch
import torch.distributed as dist
from torch import nn

from helpers.every_loss import NUM_CLASSES, SIZE, WORKS
from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

INPUTS = 5
OF_OWN_EDGES = ("lambda_mean", "lambda_std")


def make_trunk():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, SIZE)).double()


def make_loss(name="MultiSimilarityLoss", generator=None, gather=True, **kwargs):
    """A loss as after some training: its negatives count, and are pulled."""
    torch.manual_seed(2)
    make = generator or (lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2))
    loss = HardNegativeGenerationLoss(WORKS[name](NUM_CLASSES), make(), gather_across_devices=gather, **kwargs)
    with torch.no_grad():
        for level, value in ((loss.levels.metric, 4.0), (loss.levels.generator, 15.0)):
            level.value.fill_(value)
            level.weight.fill_(0.5)
            level.total.fill_(0.5 * value)
    return loss.double()


def make_rows(labels, seed=3):
    """Inputs near the centres of their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(labels, dtype=torch.long)
    centres = torch.randn(NUM_CLASSES, INPUTS, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), INPUTS, generator=generator, dtype=torch.float64), labels


def draw(seed, rank=0, gather=True):
    """Seed the generator of a process; without gathering, by what processes share whose first one has this seed."""
    torch.manual_seed(seed + rank if gather else seed)
    if not gather:
        torch.manual_seed(int(torch.empty((), dtype=torch.long).random_()))


def average(parameters):
    """Average gradients over processes, as DistributedDataParallel does."""
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def kept(value, trunk, loss):
    """Everything that a step leaves behind; without λ of a shared graph, which is that of a process's own edges."""
    found = {"value": value.detach().clone()}
    for part, module in (("trunk", trunk), ("loss", loss)):
        for name, p in module.named_parameters():
            found[f"gradient of {part}.{name}"] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, b in module.named_buffers():
            found[f"{part}.{name}"] = b.clone()
    for name, value in loss.logs().items():
        if loss.shard_edges and name in OF_OWN_EDGES:
            continue
        found[f"log of {name}"] = torch.tensor(value, dtype=torch.float64)
    return found


def differences(title, found, expected, rtol=1e-10):
    """Say what is not as expected, relative to the largest value."""
    failures = [
        f"{title}: {name} is missing" for name in expected.keys() ^ found.keys() if not name.endswith(OF_OWN_EDGES)
    ]
    for name in expected.keys() & found.keys():
        x, y = found[name], expected[name]
        scale = max(float(y.double().abs().max()), 1e-3) if y.numel() else 1.0
        error = float((x.double() - y.double()).abs().max()) / scale if y.numel() else 0.0
        if not error <= rtol:
            failures.append(f"{title}: {name} is {error:.1e} off")
    return failures


def same_everywhere(title, tensors):
    """Say whether a process differs from the first by a bit."""
    flat = torch.cat([x.detach().double().flatten() for x in tensors])
    first = flat.clone()
    dist.broadcast(first, 0)
    return [] if torch.equal(flat, first) else [f"{title}: not bit-equal to the first process"]


def own_rows(labels, sizes, rank, seed=3):
    """Inputs and labels of one process."""
    x, y = make_rows(labels, seed)
    mine = torch.arange(len(y)).split(sizes)[rank]
    return x[mine], y[mine]


def step(rank, sizes, labels, name="MultiSimilarityLoss", seed=77, **options):
    """Compute one step in this process's part of the rows."""
    trunk, loss = make_trunk(), make_loss(name, **options)
    x, y = own_rows(labels, sizes, rank)
    draw(seed, rank)
    value = loss(trunk(x), y)
    value.backward()
    average(trunk.parameters())
    return kept(value, trunk, loss)


def alone(labels, name="MultiSimilarityLoss", seed=77, **options):
    """Compute the same step in one process."""
    trunk, loss = make_trunk(), make_loss(name, gather=False, **options)
    x, y = make_rows(labels)
    draw(seed, gather=False)
    value = loss(trunk(x), y)
    value.backward()
    return kept(value, trunk, loss)

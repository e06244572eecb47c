"""The loss in loops of several kinds: accumulation, phases, evaluation, references, miners, groups."""

import copy
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import SequentialSampler, TensorDataset

from helpers.every_loss import NUM_CLASSES, SIZE
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
)
from helpers.gathering.values import LAYOUTS, MIXED
from pml_gca import GlobalCorrelationGenerator
from pml_gca.trainers import AlternatingTrainer

LABELS, SIZES = LAYOUTS[2]["uneven"]


def accumulation(rank, world):
    """Two batches before a step: the first without synchronisation, or both forwards before one backward."""
    expected, found = [], []
    for seed in (0, 1):
        trunk, loss = make_trunk(), make_loss(gather=False)
        x, y = make_rows(LABELS, seed)
        draw(seed, gather=False)
        value = loss(trunk(x), y)
        value.backward()
        expected.append(kept(value, trunk, loss))
    for together in (False, True):
        trunk, loss = make_trunk(), make_loss()
        models = DistributedDataParallel(trunk), DistributedDataParallel(loss)
        values = []
        for seed in (0, 1):
            x, y = own_rows(LABELS, SIZES, rank, seed)
            with ExitStack() as stack:
                for model in models if seed == 0 else ():
                    stack.enter_context(model.no_sync())
                loss.levels.load_state_dict(make_loss().levels.state_dict())
                draw(seed, rank)
                value = models[1](models[0](x), y) if not together else loss(trunk(x), y)
                values.append(value)
                if not together:
                    value.backward()
        if together:
            sum(values).backward()
            average(trunk.parameters())
        found = kept(values[1], trunk, loss)
        wanted = {name: sum(each[name] for each in expected) for name in expected[0] if name.startswith("gradient")}
        yield from differences(f"together {together}", {name: found[name] for name in wanted}, wanted)


def phases(rank, world):
    """Both halves of the alternating schedule."""
    found = []
    for gather in (True, False):
        trunk, loss = make_trunk(), make_loss(gather=gather)
        x, y = own_rows(LABELS, SIZES, rank) if gather else make_rows(LABELS)
        rows = trunk(x)
        with loss.phase("embedding"):
            draw(1, rank, gather)
            value = loss(rows, y)
        value.backward()
        with loss.phase("generation"):
            draw(2, rank, gather)
            second = loss(rows.detach(), y)
        second.backward()
        if gather:
            average(trunk.parameters())
        found.append({"second": second.detach()} | kept(value, trunk, loss))
    yield from differences("phases", *found)


def alternating_trainer(rank, world):
    """Epochs of AlternatingTrainer, with and without DistributedDataParallel around the loss."""
    for outer in (False, True):
        trained = []
        for gather in (True, False):
            trunk = make_trunk()
            loss = make_loss(gather=gather, generator=deterministic)
            data = TensorDataset(*(own_rows(LABELS, SIZES, rank) if gather else make_rows(LABELS)))
            wrapped = DistributedDataParallel(loss, find_unused_parameters=True) if gather and outer else loss
            AlternatingTrainer(
                models={"trunk": DistributedDataParallel(trunk) if gather else trunk},
                optimizers={
                    "trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=1e-2),
                    "metric_loss_optimizer": torch.optim.SGD(loss.parameters(), lr=1e-2),
                },
                batch_size=len(data),
                loss_funcs={"metric_loss": wrapped},
                dataset=data,
                sampler=SequentialSampler(data),
                iterations_per_epoch=1,
                dataloader_num_workers=0,
                data_device=torch.device("cpu"),
                dtype=torch.float64,
            ).train(num_epochs=3)
            trunk.zero_grad()
            loss.zero_grad()
            trained.append({**trunk.state_dict(), **loss.state_dict()})
            if gather:
                yield from same_everywhere(f"outer {outer}", trained[0].values())
        yield from differences(f"outer {outer}", *trained, rtol=1e-9)


def deterministic():
    return GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=1, num_heads=2, dropout=0.0, merging="mean")


def evaluation(rank, world):
    """The value is that of the wrapped loss of all rows, for any labels; nothing changes."""
    labels = [100 * label - 7 for label in LABELS]
    for sizes in (SIZES, [0, 12]):
        loss, plain = make_loss(), make_loss(gather=False).loss
        x, _ = make_rows(LABELS)
        rows, y = torch.cat([x, x[:, :3]], dim=1), torch.tensor(labels)
        mine = torch.arange(len(y)).split(sizes)[rank]
        before = copy.deepcopy(loss.state_dict())
        with torch.no_grad():
            in_training = loss(rows[mine], y[mine])
        loss.eval()
        own = rows[mine].requires_grad_()
        value = loss(own, y[mine].to(torch.int32))
        value.backward()
        whole = rows.clone().requires_grad_()
        expected = plain(whole, y)
        expected.backward()
        found = {"in training": in_training, "value": value.detach(), "rows": own.grad}
        wanted = {"in training": expected.detach(), "value": expected.detach(), "rows": world * whole.grad[mine]}
        yield from differences(f"evaluation, {sizes}", found, wanted)
        if any(not torch.equal(value, before[name]) for name, value in loss.state_dict().items()):
            yield "evaluation changed the loss"


class Whole(nn.Module):
    """Network and loss in one module, as in a LightningModule."""

    def __init__(self):
        super().__init__()
        self.trunk, self.loss = make_trunk(), make_loss("ProxyAnchorLoss")

    def forward(self, x, y):
        return self.loss(self.trunk(x), y)


def in_one_module(rank, world):
    """One DistributedDataParallel around both, which waits for a gradient of every parameter."""
    for title, (labels, sizes) in LAYOUTS[2].items():
        whole = Whole()
        module = DistributedDataParallel(whole)
        x, y = own_rows(labels, sizes, rank)
        draw(77, rank)
        value = module(x, y)
        value.backward()
        yield from differences(title, kept(value, whole.trunk, whole.loss), alone(labels, "ProxyAnchorLoss"))


def first_call(rank, world):
    """All take over the parameters of the first process."""
    loss, expected = make_loss(), make_loss()
    with torch.no_grad():
        for x in (*loss.parameters(), *loss.buffers()):
            x.add_(rank)
    x, y = own_rows(LABELS, SIZES, rank)
    loss.eval()(make_trunk()(x), y)
    yield from differences("first call", loss.state_dict(), expected.state_dict(), rtol=0)


def loaded(rank, world):
    """A checkpoint that only the first process loads reaches all."""
    loss, other = make_loss("ContrastiveLoss"), make_loss("ContrastiveLoss")
    x, y = own_rows(LABELS, SIZES, rank)
    rows = make_trunk()(x).detach()
    loss.eval()(rows, y)
    with torch.no_grad():
        for p in (*other.parameters(), *other.buffers()):
            p.mul_(2)
    if rank == 0:
        loss.load_state_dict(other.state_dict())
    loss(rows, y)
    yield from differences("loaded", loss.state_dict(), other.state_dict(), rtol=0)


def one_that_learns(rank, world):
    """Rows without gradient in one process change nothing for the others, nor for parameters."""
    found = []
    for learns in (True, rank > 0):
        loss = make_loss()
        x, y = own_rows(LABELS, SIZES, rank)
        rows = make_trunk()(x).detach().requires_grad_(learns)
        draw(6, rank)
        loss(rows, y).backward()
        found.append({n: p.grad for n, p in loss.named_parameters()} | ({"rows": rows.grad} if rank else {}))
    yield from differences("one that learns", *found, rtol=0)


def in_a_group(rank, world):
    """Two of three processes gather; the third one works alone. Copies gather over the same group."""
    group = dist.new_group([1, 2])
    sizes = [0, *SIZES]
    if rank == 0:
        return
    labels = MIXED
    trunk, loss = make_trunk(), copy.deepcopy(make_loss(process_group=group))
    x, y = own_rows(labels, sizes, rank)
    draw(77, rank - 1)
    value = loss(trunk(x), y)
    value.backward()
    for p in trunk.parameters():
        dist.all_reduce(p.grad, group=group)
        p.grad /= 2
    yield from differences("group", kept(value, trunk, loss), alone(labels))
    try:
        loss(trunk(x).detach() / (rank - 1), y)
        yield "nothing was raised"
    except ValueError as error:
        if "rank 1: embeddings must be finite" not in str(error):
            yield str(error)


CASES = (
    accumulation,
    phases,
    alternating_trainer,
    evaluation,
    in_one_module,
    first_call,
    loaded,
    one_that_learns,
)

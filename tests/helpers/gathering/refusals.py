"""An error in one process is raised in all, with its rank, and changes nothing."""

from contextlib import nullcontext

import torch
from pytorch_metric_learning.losses import MultipleLosses, TripletMarginLoss
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from helpers.every_loss import NUM_CLASSES, SIZE
from helpers.gathering.steps import differences, draw, make_loss, make_rows, make_trunk, same_everywhere
from pml_gca import GlobalCorrelationGenerator

IN_REFERENCES = ("references", "labels of references", "width of references")


def faults(x, y):
    """Arguments of a call with a fault, and what is said about it."""
    nan, out = x.clone(), y.clone()
    nan[1, 2], out[2] = float("nan"), 99
    return {
        "label out of range": ((x, out), "labels must lie in [0, num_classes) = [0, 12), got values from"),
        "negative label": ((x, -1 - y), "labels must lie in [0, num_classes)"),
        "NaN": ((nan, y), f"embeddings must be finite, got 1 NaN and 0 infinite of {x.numel()} values"),
        "too large": ((x * 1e305, y), "embeddings must have a norm below"),
        "width": ((x[:, :3], y), "embeddings must have 8 channels, the generator's embedding_size, got 3"),
        "three dimensions": ((x[None], y), "embeddings must be 2-D"),
        "integers": ((x.long(), y), "embeddings must be floating point, got torch.int64"),
        "no tensor": ((x.tolist(), y), "embeddings must be a torch.Tensor, got list"),
        "too few labels": ((x, y[1:]), "labels must be as many as embeddings: expected 4, got 3"),
        "labels that are no integers": ((x, y.double()), "labels must be integers, got torch.float64"),
        "no labels": ((x,), "labels are required in training"),
        "embeddings without data": ((x.to("meta"), y), "embeddings must be on a device of the process group, such as"),
        "labels without data": ((x, y.to("meta")), "Cannot copy out of meta tensor"),
        "indices that are lists": ((x, y, ([0], [2], [1])), "indices_tuple must be a tuple of tensors, got tuple"),
        "indices that are a number": ((x, y, 3), "indices_tuple must be what a miner returns, got int"),
        "references": ((x, y, None, nan, y), "ref_emb must be finite, got 1 NaN"),
        "labels of references": ((x, y, None, x, out), "ref_labels must lie in [0, num_classes)"),
        "width of references": ((x, y, None, x[:, :3], y), "ref_emb must have 8 channels"),
    }


def raised(function, *args):
    """Return the error of a call, if any."""
    try:
        function(*args)
    except (TypeError, ValueError, RuntimeError) as error:
        return error
    return None


def bad_input(rank, world):
    """Each fault in the last process, or in the last two, and then a good batch."""
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    rows = make_trunk()(x).detach()
    loss, untouched = make_loss("ContrastiveLoss"), make_loss("ContrastiveLoss")
    for i, (kind, (args, reason)) in enumerate(faults(rows, y).items()):
        culprits = [world - 1, world - 2][: 1 + i % 2]
        good = (rows, y, None, rows.clone(), y) if kind in IN_REFERENCES else (rows, y)
        state = torch.get_rng_state()
        error = raised(loss, *(args if rank in culprits else good))
        for culprit in range(world):
            if (f"rank {culprit}: {reason}" in str(error)) != (culprit in culprits):
                yield f"{kind} in {culprits}: {error!r}"
        if not torch.equal(state, torch.get_rng_state()):
            yield f"{kind} changed the random state"
        yield from differences(kind, loss.state_dict(), untouched.state_dict(), rtol=0)
    values = []
    for each in (loss, untouched):
        draw(1, rank)
        values.append({"value": each(rows, y).detach()})
    yield from differences("a good batch after all", *values, rtol=0)


def differing(rank, world):
    """What each process may do, but not one of them alone."""
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    rows = make_trunk()(x).detach()
    last = world - 1
    is_last = rank == last
    one, other = ((torch.tensor([i]), torch.tensor([2 + i]), torch.tensor([3 - i])) for i in (0, 1))
    for kind, args in {
        "the dtype of embeddings": (rows.float() if is_last else rows, y),
        "ref_emb given": (rows, y, None, rows.clone(), y) if is_last else (rows, y),
        "the sizes of indices_tuple, which is that of the global batch,": (rows, y, one) if is_last else (rows, y),
        "indices_tuple": (rows, y, other if is_last else one),
    }.items():
        error = raised(make_loss("ContrastiveLoss"), *args)
        if f"{kind} must be" not in str(error) or "in all processes, got" not in str(error).replace(";", ","):
            yield f"{kind}: {error!r}"
    loss = make_loss("ContrastiveLoss").eval()
    error = raised(loss, rows[:, :3] if is_last else rows, y)
    if str(error) != f"the channels of embeddings must be the same in all processes, got 8 on rank 0, 3 on rank {last}":
        yield f"channels: {error!r}"
    loss.train(not is_last)
    error = raised(loss, rows, y)
    if "what is computed must be the same in all processes, got training, phase all on rank 0" not in str(error):
        yield f"evaluation: {error!r}"
    loss.train()
    with loss.phase("embedding") if is_last else nullcontext():
        error = raised(loss, rows, y)
    if f"phase embedding on rank {last}" not in str(error):
        yield f"phase: {error!r}"
    layers = 2 if is_last else 1
    loss = make_loss(generator=lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_layers=layers, num_heads=2))
    error = raised(loss, rows, y)
    if "the number of values in the parameters of HardNegativeGenerationLoss must be the same" not in str(error):
        yield f"parameters: {error!r}"
    yield from other_losses(rows, y, is_last)


def other_losses(rows, y, is_last):
    """Losses that would exchange other tensors, or compute something else, in the last process."""
    name = "HardNegativeGenerationLoss"
    for change, message in {
        lambda loss: loss.float(): f"the number of values in the parameters of {name} must be",
        lambda loss: setattr(loss, "loss", TripletMarginLoss()): f"the parts of {name} must be",
        lambda loss: loss.generator.eval(): f"the number of modules of {name} in training mode must be",
        lambda loss: loss.generator.requires_grad_(False): f"the number of values that {name} learns must be",
        lambda loss: None: "the dtype of autocast must be the same in all processes, got none on rank 0",
    }.items():
        loss = make_loss("ContrastiveLoss", shard_edges=True)
        if is_last:
            change(loss)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_last and "autocast" in message):
            error = raised(loss, rows, y)
        if message not in str(error):
            yield f"{message}: {error!r}"


def failure_of_one(rank, world):
    """A process whose loss fails halfway takes over what the others have learned from the batch; so do parts of it."""
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    rows = make_trunk()(x).detach()
    loss = make_loss("ContrastiveLoss", memory_size=20)
    forward = loss.loss.forward
    if rank == 0:
        loss.loss.forward = None
    raised(loss, rows, y)
    loss.loss.forward = forward
    loss(rows, y)
    yield from same_everywhere("after a failure", loss.state_dict().values())
    if rank == 0:
        loss.generator.load_state_dict({key: x + 1 for key, x in loss.generator.state_dict().items()})
    loss(rows, y)
    yield from same_everywhere("after a generator's state was loaded", loss.state_dict().values())


def inside_the_wrapper(rank, world):
    """PML's wrapper would gather once more."""
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    rows = make_trunk()(x).detach()
    inside, among = DistributedLossWrapper(make_loss()), MultipleLosses([DistributedLossWrapper(make_loss())])
    for wrapper in (inside, among, inside.eval()):
        error = raised(wrapper, rows, y)
        if "Take the wrapper away: call loss(embeddings, labels) with the rows of each process" not in str(error):
            yield f"{error!r}"


def second_derivatives(rank, world):
    """Gradients of gradients would miss what other processes add to them."""
    x, y = make_rows([0, 1, 0, 1], seed=rank)
    rows = make_trunk()(x).detach().requires_grad_()
    [gradient] = torch.autograd.grad(make_loss("ContrastiveLoss")(rows, y), rows, create_graph=True)
    error = raised(gradient.square().sum().backward)
    if "once_differentiable" not in str(error):
        yield f"{error!r}"


CASES = (bad_input, differing, failure_of_one, inside_the_wrapper, second_derivatives)

"""The graph's work, shared: every process holds all nodes, and computes the edges whose first end is one of its nodes.

Values are of two kinds. *Replicated* ones are the same in all processes: embeddings, nodes, parameters, the loss.
*Partial* ones are sums over the edges of one process. `enter` stands where a replicated value goes into the
computations of edges: there its gradient is partial, and is summed over the processes. `leave` stands where partial
sums become a replicated value: its gradient is replicated, and passes. Each is the other's derivative, to any order.

The collectives of `torch.distributed.nn` sum values and gradients alike. That suits a loss that is summed over the
processes. Here every process holds the whole loss, and would get gradients that are W times too large.

Without other processes (`None`) all functions return their arguments.
"""

from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .processes import Processes


def share_of(num_nodes: int, processes: Processes) -> range:
    """Return the range of nodes that belongs to this process. The ranges of all processes split the nodes evenly."""
    rank, size = processes.rank, processes.size
    return range(rank * num_nodes // size, (rank + 1) * num_nodes // size)


def total(processes: Processes | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the sums over all processes, in one collective and without gradient. Half precision sums in float32."""
    if processes is None or not tensors:
        return tensors
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    flat = torch.cat([x.detach().flatten().to(dtype) for x in tensors])
    dist.all_reduce(flat, group=processes.group)
    parts = flat.split([x.numel() for x in tensors])
    return tuple(part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True))


def enter(processes: Processes | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return replicated tensors as they are. In backward, sum their gradients over all processes, in one collective."""
    if processes is None:
        return tensors
    entered: tuple[Tensor, ...] = Enter.apply(processes, *tensors)
    return entered


def leave(processes: Processes | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of partial tensors over all processes, in one collective. In backward, pass the gradients."""
    if processes is None:
        return tensors
    left: tuple[Tensor, ...] = Leave.apply(processes, *tensors)
    return left


class Enter(torch.autograd.Function):
    """See `enter`. A tensor that got no gradient exchanges none; the graph is the same in all processes."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.processes = processes
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        summed = iter(leave(ctx.processes, *(grad for grad in grads if grad is not None)))
        return None, *(None if grad is None else next(summed) for grad in grads)


class Leave(torch.autograd.Function):
    """See `leave`."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.processes = processes
        ctx.set_materialize_grads(False)
        return total(processes, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        passed = iter(enter(ctx.processes, *(grad for grad in grads if grad is not None)))
        return None, *(None if grad is None else next(passed) for grad in grads)

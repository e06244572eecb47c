"""Gradients of functions that are recomputed in the backward pass, to keep less or to be differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]
Inputs = dict[int, Tensor | None]


def recompute_gradients(
    function: Function, inputs: Sequence[Tensor], needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Recompute a differentiable function, without autocast, and return its gradients.

    Call it in the backward pass of an `autograd.Function`. If gradients are recorded (`create_graph=True`), the
    result can be differentiated again.

    Args:
        function: takes `inputs` and returns one output for each of `grads`.
        inputs: tensors, as the context has saved them.
        needed: for which of them a gradient is needed.
        grads: gradients of the outputs; None for an output that was not used.

    Returns:
        One gradient per input; None where not needed.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        if again:
            inputs = [x.view_as(x) for x in inputs]  # one tensor given twice gets two gradients
        else:
            inputs = [x.detach().requires_grad_(wanted) for x, wanted in zip(inputs, needed, strict=True)]
        found = function(*inputs)
        outputs = (found,) if isinstance(found, Tensor) else found
        used = [
            (out, grad)
            for out, grad in zip(outputs, grads, strict=True)
            if grad is not None and out.requires_grad  # an output may depend on inputs without gradient alone
        ]
        wanted_inputs = [x for x, wanted in zip(inputs, needed, strict=True) if wanted]
        if not used or not wanted_inputs:
            return [None] * len(inputs)
        made = iter(
            torch.autograd.grad(
                [out for out, _ in used],
                wanted_inputs,
                [grad for _, grad in used],
                create_graph=again,
                allow_unused=True,
            )
        )
        return [next(made) if wanted else None for wanted in needed]


def differentiate_plain(
    ctx: Any, function: Function, inputs: Inputs, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the gradients that an `autograd.Function` owes, taken from a plain form of it.

    A backward pass written out by hand calls it where gradients are recorded (`create_graph=True`), because autograd
    cannot differentiate what is written to buffers.

    Args:
        ctx: the context of the `autograd.Function`.
        function: its plain form, which autograd can differentiate.
        inputs: the tensors that `function` takes, by their places among the arguments of `forward`; None for one
            that was not given.
        grads: gradients of the outputs.

    Returns:
        One gradient per argument of `forward`; None where not needed.
    """
    if all(grad is None for grad in grads):
        return (None,) * len(ctx.needs_input_grad)
    given = {place: x for place, x in inputs.items() if x is not None}

    def of_given(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return function(*{**inputs, **dict(zip(given, tensors, strict=True))}.values())

    needed = [ctx.needs_input_grad[place] for place in given]
    found = dict(zip(given, recompute_gradients(of_given, list(given.values()), needed, grads), strict=True))
    return tuple(found.get(place) for place in range(len(ctx.needs_input_grad)))

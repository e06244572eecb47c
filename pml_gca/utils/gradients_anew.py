"""Gradients taken by computing a function anew, for backward passes that keep little or are differentiated again."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients_anew(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a differentiable function, computed anew, without autocast.

    Call it in the backward pass of an ``autograd.Function``. Where gradients are recorded (``create_graph=True``) they
    can be differentiated again.

    Args:
        function: of ``inputs``, with one output for each of ``grads``.
        inputs: tensors, as the context has saved them.
        needed: for which of them a gradient is wanted.
        grads: gradients of the outputs; None where an output was not used.

    Returns:
        As many as inputs; None where not needed.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        if again:
            inputs = [x.view_as(x) for x in inputs]  # one tensor given twice gets two gradients
        else:
            inputs = [x.detach().requires_grad_(wanted) for x, wanted in zip(inputs, needed, strict=True)]
        found = function(*inputs)
        outputs = (found,) if isinstance(found, Tensor) else found
        used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
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


Backward = Callable[..., tuple[Tensor | None, ...]]
Plain = Callable[[Any], tuple[Callable[..., Tensor | tuple[Tensor, ...]], dict[int, Tensor | None]]]


def differentiable_again(plain: Plain) -> Callable[[Backward], Backward]:
    """Make the backward pass of an ``autograd.Function``, written out, one that can itself be differentiated.

    Where gradients are recorded (``create_graph=True``), those of a plain form of the function are taken instead.

    Args:
        plain: takes the context, and returns the plain form and what it is a function of: the tensors by their places
            among the arguments of ``forward``. None stands for one that was not given.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def run(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            function, given = plain(ctx)
            inputs = {place: x for place, x in given.items() if x is not None}

            def of_inputs(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
                named = {**given, **dict(zip(inputs, tensors, strict=True))}
                return function(*named.values())

            needed = [ctx.needs_input_grad[place] for place in inputs]
            found = dict(zip(inputs, gradients_anew(of_inputs, list(inputs.values()), needed, grads), strict=True))
            return tuple(found.get(place) for place in range(len(ctx.needs_input_grad)))

        return run

    return decorate

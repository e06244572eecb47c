"""A gradient taken from a detached copy of the embeddings, and handed on to the embeddings themselves."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..correlation.propagation import Correlations
from ..correlation.sweeps import Wanted
from ..utils.dtypes import compute_dtype

HALF_GRADIENT_SCALE = 1024.0  # lifts gradients that float16 would flush to zero


class OfEmbeddings(torch.autograd.Function):
    """A value computed from ``leaf``, a copy of the embeddings, whose gradient is to reach the embeddings as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, embeddings: Tensor, leaf: Tensor, wanted: Wanted) -> Tensor:
        ctx.value, ctx.leaf, ctx.wanted = value, leaf, wanted
        ctx.save_for_backward(embeddings)
        return value.clone()

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (embeddings,) = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with ctx.wanted.for_embeddings():
            (gradient,) = torch.autograd.grad(ctx.value, ctx.leaf, grad, retain_graph=True, create_graph=again)
        gradient = gradient[: len(embeddings)]
        if again:
            gradient = OfEmbeddings.apply(gradient, embeddings, ctx.leaf, ctx.wanted)
        return grad, gradient, None, None


class HandedOn(torch.autograd.Function):
    """0, with a given gradient; whatever the gradient is, the value stays.

    ``anew`` takes the gradient again where it is to be differentiated itself.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, gradient: Tensor, anew: Callable[[], Tensor]) -> Tensor:
        ctx.anew = anew
        ctx.save_for_backward(gradient)
        return gradient.new_zeros(())

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradient = ctx.anew()
        return gradient * grad, None, None


def hand_gradient_on(
    loss: Tensor, leaf: Tensor, embeddings: Tensor, correlations: Correlations, in_half: bool = False
) -> Tensor:
    """Let a loss of a detached copy of the embeddings reach the embeddings themselves.

    Several terms share one graph that was propagated from ``leaf``; only this one may train the embeddings. Its
    gradient with respect to the leaf is taken now, and handed on by a term of value 0.

    Args:
        loss: scalar, a function of ``leaf`` and of parameters.
        leaf: (N, D), detached copy whose first B rows are those of ``embeddings``.
        embeddings: (B, D).
        correlations: the graph; from now on its backward passes are for the parameters alone.
        in_half: the graph was computed in float16.

    Returns:
        Scalar of the same value, whose gradient reaches the parameters and ``embeddings``.
    """
    wanted = correlations.wanted or Wanted()

    def take(again: bool) -> Tensor:
        with wanted.for_embeddings(), torch.autocast(leaf.device.type, enabled=False):
            scaled = loss * HALF_GRADIENT_SCALE if in_half else loss
            (gradient,) = torch.autograd.grad(scaled, leaf, retain_graph=True, create_graph=again)
        gradient = gradient[: len(embeddings)].to(compute_dtype(embeddings))
        gradient = gradient / HALF_GRADIENT_SCALE if in_half else gradient
        return OfEmbeddings.apply(gradient, embeddings, leaf, wanted) if again else gradient

    gradient = take(again=False)
    wanted.embeddings = False
    handed_on: Tensor = HandedOn.apply(embeddings, gradient, functools.partial(take, again=True))
    return loss + handed_on

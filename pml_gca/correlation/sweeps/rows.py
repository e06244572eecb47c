"""What all sweeps share: the plan, the edges of one tile, their post-norm, and the frame of a backward pass.

What it buys: edges are recomputed from one kept (E, D) tensor a layer, where autograd would keep each intermediate
value. See `pml_gca.correlation.sweeps` for what is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.recompute_gradients import differentiate_plain
from ..correlations import GradientPass
from ..edges import at_ends, edge_pairs
from ..tiles import Tile, add_to_second, fold, sums_of, turned

NORM_EPS = 1e-5


@dataclass(frozen=True)
class SweepPlan:
    """How edges are swept.

    Attributes:
        tiles: what is computed at a time.
        num_edges: E.
        edge_chunk_size: the largest number of edges in a tile.
        matmul_dtype: of matrix products.
        keep_hidden: keep the hidden activations of MLPs for the backward pass; else recompute them.
        gradient_pass: what a backward pass is for.
    """

    tiles: Sequence[Tile]
    num_edges: int
    edge_chunk_size: int
    matmul_dtype: torch.dtype
    keep_hidden: bool
    gradient_pass: GradientPass = field(default_factory=GradientPass)


class EdgeState(NamedTuple):
    """What is kept of the edges, from which `EdgeRows` computes them.

    Attributes:
        kept: (E, D), edges before their post-norm; for the first edges the (N, D) standardised embeddings.
        norm_weight, norm_bias: (D,) of the post-norm; None for the first edges.
    """

    kept: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def plain(self) -> Tensor:
        """Return all edges at once, as autograd can differentiate them: (E, D)."""
        if self.norm_weight is None or self.norm_bias is None:
            first, second = at_ends(self.kept, edge_pairs(len(self.kept), self.kept.device))
            return first * second
        return plain_post_norm(self.kept, self.norm_weight, self.norm_bias)


class SweptFunction(torch.autograd.Function):
    """A function of all edges whose backward pass is written out, tile by tile.

    A subclass implements `forward`, run without autocast, and the two methods below.
    """

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return one gradient per argument of `forward`."""
        raise NotImplementedError

    @staticmethod
    def plain(ctx: Any) -> tuple[Callable[..., Tensor], dict[int, Tensor | None]]:
        """Return a plain form for second derivatives, and its inputs; see `differentiate_plain`."""
        raise NotImplementedError

    @classmethod
    @torch.compiler.disable
    def backward(cls, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return differentiate_plain(ctx, *cls.plain(ctx), [grad])
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        with torch.autocast(grad.device.type, enabled=False):  # sweeps cast by themselves
            return cls.gradients(ctx, grad)


class EdgeRows:
    """The edges, tile by tile, recomputed from what is kept of them; and the gradient of that."""

    def __init__(self, state: EdgeState) -> None:
        self.kept, self.weight, self.bias = state
        self.is_first = self.weight is None
        if self.is_first:
            self.turned = turned(self.kept)

    def __call__(self, tile: Tile) -> Tensor:
        """Return the (R, D) edges of ``tile``."""
        if self.weight is None or self.bias is None:
            return (self.kept[tile.nodes] * self.turned[tile.offsets, tile.nodes]).flatten(0, 1)
        self.norm = PostNorm(self.kept[tile.rows], self.weight, self.bias)
        return self.norm.out

    def start_backward(self, to_parameters: bool) -> None:
        """Prepare to collect gradients: of the kept tensor and, if wanted, of the post-norm's parameters."""
        self.norm_sums = None
        if self.weight is not None and to_parameters:
            self.norm_sums = [torch.zeros_like(self.weight), torch.zeros_like(self.weight)]
        self.grad = sums_of(self.kept) if self.is_first else torch.empty_like(self.kept)

    def backward(self, tile: Tile, grad: Tensor) -> None:
        """Take in the gradient of the edges of ``tile``, which were computed last."""
        if self.is_first:
            box = grad.view(*tile.shape, -1)
            self.grad[tile.nodes] += (box * self.turned[tile.offsets, tile.nodes]).sum(dim=0)
            add_to_second(self.grad, tile, box * self.kept[tile.nodes])
        else:
            self.grad[tile.rows] = self.norm.backward(grad, self.norm_sums)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of what is kept, of the norm's weight and of its bias."""
        weight, bias = self.norm_sums or (None, None)
        return fold(self.grad) if self.is_first else self.grad, weight, bias


class PostNorm:
    """LayerNorm(GELU(x)) of (R, D) rows, and its gradient."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.x, self.weight = x, weight
        self.activated = F.gelu(x)
        self.out, self.mean, self.rstd = torch.native_layer_norm(self.activated, (x.shape[1],), weight, bias, NORM_EPS)

    def backward(self, grad: Tensor, sums: list[Tensor] | None) -> Tensor:
        """Return the gradient of x; add those of weight and bias to ``sums``."""
        want_parameters = sums is not None
        grad, weight, bias = torch.ops.aten.native_layer_norm_backward(
            grad, self.activated, self.x.shape[1:], self.mean, self.rstd, self.weight, self.weight,
            [True, want_parameters, want_parameters],
        )  # fmt: skip
        if sums is not None:
            sums[0] += weight
            sums[1] += bias
        return torch.ops.aten.gelu_backward(grad, self.x)


def plain_post_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return LayerNorm(GELU(x)), as autograd can differentiate it."""
    return F.layer_norm(F.gelu(x), x.shape[1:], weight, bias, NORM_EPS)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``total``, summed up in its dtype."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total += left @ right

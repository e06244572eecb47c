"""What all sweeps share: how edges come from what is kept of them, and what a backward pass is for."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..correlations import GradientPass
from ..edges import at_ends, edge_pairs
from ..tiles import Tile, once, twice

NORM_EPS = 1e-5
Method = TypeVar("Method", bound=Callable[..., Any])


def without_autocast(method: Method) -> Method:
    """Run a function's forward or backward as written: it casts by itself, and backward may run inside autocast."""

    @functools.wraps(method)
    def run(ctx: Any, *args: Any) -> Any:
        device = next((arg.device.type for arg in args if isinstance(arg, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return cast(Method, run)


class EdgeState(NamedTuple):
    """What is kept of the edges, from which `EdgeRows` computes them.

    Attributes:
        kept: (E, D), edges before their post-norm; of the first edges the (N, D) standardised embeddings.
        norm_weight, norm_bias: (D,) of the post-norm; None for the first edges.
    """

    kept: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


@dataclass(frozen=True)
class SweepPlan:
    """How edges are swept.

    Attributes:
        tiles: what is computed at a time.
        num_edges: E.
        edge_chunk_size: the largest number of edges in a tile.
        matmul_dtype: of matrix products.
        keep_hidden: keep the hidden activations of MLPs for the backward pass, rather than compute them anew.
        gradient_pass: see `GradientPass`.
    """

    tiles: Sequence[Tile]
    num_edges: int
    edge_chunk_size: int
    matmul_dtype: torch.dtype
    keep_hidden: bool
    gradient_pass: GradientPass = field(default_factory=GradientPass)

    def room_for_hidden(self, like: Tensor, width: int) -> Tensor | None:
        """(E, ``width``) to keep hidden activations in, if they are kept: one piece, which allocators like better."""
        return like.new_empty(self.num_edges, width, dtype=self.matmul_dtype) if self.keep_hidden else None

    @staticmethod
    def part(room: Tensor | None, tile: Tile) -> Tensor | None:
        """The rows of ``room`` that are the tile's."""
        return None if room is None else room[tile.rows]


def plain_edges(kept: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What `EdgeRows` gives, of all edges at once: (E, D)."""
    if weight is None or bias is None:
        first, second = at_ends(kept, edge_pairs(len(kept), kept.device))
        return first * second
    return plain_post_norm(kept, weight, bias)


def plain_post_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm(GELU(x))."""
    return F.layer_norm(F.gelu(x), x.shape[1:], weight, bias, NORM_EPS)


class PostNorm:
    """LayerNorm(GELU(x)) of (R, D) rows, and its gradient."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.x, self.weight = x, weight
        self.activated = F.gelu(x)
        self.out, self.mean, self.rstd = torch.native_layer_norm(self.activated, (x.shape[1],), weight, bias, NORM_EPS)

    def backward(self, grad: Tensor, sums: list[Tensor] | None) -> Tensor:
        """Gradient of x; those of weight and bias are added to ``sums``."""
        want_parameters = sums is not None
        grad, weight, bias = torch.ops.aten.native_layer_norm_backward(
            grad, self.activated, self.x.shape[1:], self.mean, self.rstd, self.weight, self.weight,
            [True, want_parameters, want_parameters],
        )  # fmt: skip
        if sums is not None:
            sums[0] += weight
            sums[1] += bias
        return torch.ops.aten.gelu_backward(grad, self.x)


class EdgeRows:
    """Edges, tile by tile, from what is kept of them, and the gradient of that.

    What is kept is (E, D) edges before their post-norm or, where there are no norm's ``weight`` and ``bias``, the
    (N, D) standardised embeddings whose products the first edges are.
    """

    def __init__(self, kept: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.kept, self.weight, self.bias = kept, weight, bias
        self.is_first = weight is None
        self.twice = twice(kept) if self.is_first else kept
        self.norm: PostNorm | None = None

    def __call__(self, tile: Tile) -> Tensor:
        """(R, D) edges of ``tile``."""
        if self.weight is None or self.bias is None:
            return (tile.first(self.twice) * tile.second(self.twice)).flatten(0, 1)
        self.norm = PostNorm(self.kept[tile.rows], self.weight, self.bias)
        return self.norm.out

    def start_backward(self, wanted: GradientPass) -> None:
        """Prepare to collect gradients."""
        self.sums = None
        if self.weight is not None and wanted.to_parameters:
            self.sums = [torch.zeros_like(self.weight), torch.zeros_like(self.weight)]
        self.grad = torch.zeros_like(self.twice) if self.is_first else torch.empty_like(self.kept)

    def backward(self, tile: Tile, grad: Tensor) -> None:
        """Take in the gradient of the edges of ``tile``, which were computed last."""
        if self.is_first:
            box = tile.box(grad)
            tile.add_to_first(self.grad, box * tile.second(self.twice))
            tile.add_to_second(self.grad, box * tile.first(self.twice))
        else:
            assert self.norm is not None
            self.grad[tile.rows] = self.norm.backward(grad, self.sums)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of what is kept, of the norm's weight and of its bias."""
        grad = once(self.grad) if self.is_first else self.grad
        weight, bias = self.sums or (None, None)
        return grad, weight, bias


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed up in the dtype of ``total``."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total += left @ right

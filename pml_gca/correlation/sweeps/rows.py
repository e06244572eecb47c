"""Shared by all sweeps: the plan, and the computations on the edges of one tile.

What it buys: edges are recomputed from one kept (E, D) tensor a layer. Autograd would keep each intermediate value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..correlations import GradientPass
from ..edge_list import EdgeList
from ..edges import at_ends
from ..tiles import SecondEnds, Tile, Turned

NORM_EPS = 1e-5


@dataclass(frozen=True)
class SweepPlan:
    """The settings of a sweep over the edges.

    Attributes:
        edges: the list of edges to sweep over.
        edge_chunk_size: the largest number of edges in a tile.
        matmul_dtype: of matrix products.
        state_dtype: of sums, norms and statistics.
        keep_hidden: keep the hidden activations of MLPs for the backward pass; else recompute them.
        gradient_pass: what a backward pass is for.
    """

    edges: EdgeList
    edge_chunk_size: int
    matmul_dtype: torch.dtype
    state_dtype: torch.dtype
    keep_hidden: bool
    gradient_pass: GradientPass = field(default_factory=GradientPass)

    @property
    def tiles(self) -> Sequence[Tile]:
        """What is computed at a time."""
        return self.edges.tiles(self.edge_chunk_size)


class EdgeState(NamedTuple):
    """The tensors kept of the edges; `EdgeRows` recomputes the edges from them.

    Attributes:
        kept: (E, D), edges before their post-norm; for the first edges the (N, D) standardised embeddings.
        norm_weight, norm_bias: (D,) of the post-norm; None for the first edges.
    """

    kept: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def plain(self, listed: EdgeList) -> Tensor:
        """Return the listed edges at once, in a form that autograd can differentiate: (E, D)."""
        if self.norm_weight is None or self.norm_bias is None:
            first, second = at_ends(self.kept, listed)
            return first * second
        return plain_post_norm(self.kept, self.norm_weight, self.norm_bias)


class EdgeRows:
    """The edges, tile by tile, recomputed from what is kept of them; and their gradient.

    Args:
        state: what is kept.
        turned_nodes: `EdgeList.turned(state.kept)` for the first edges; None for others.
    """

    def __init__(self, state: EdgeState, turned_nodes: Turned | None = None) -> None:
        self.kept, self.weight, self.bias = state
        self.turned = turned_nodes

    def __call__(self, tile: Tile) -> Tensor:
        """Return the (R, D) edges of `tile`."""
        if self.turned is not None:
            ends = self.kept[tile.nodes], self.turned[tile.offsets, tile.nodes]
            return torch.mul(*ends, out=tile.box(self.kept)).flatten(0, 1)
        assert self.weight is not None
        assert self.bias is not None
        self.norm = PostNorm(self.kept[tile.rows], self.weight, self.bias)
        return self.norm.out

    def start_backward(self, to_parameters: bool) -> None:
        """Prepare to collect gradients: of the kept tensor and, if wanted, of the post-norm's parameters."""
        self.grad = torch.empty_like(self.kept) if self.turned is None else torch.zeros_like(self.kept)
        self.at_second = SecondEnds(self.grad)
        self.norm_grads: list[Tensor] | None = None
        if self.weight is not None and to_parameters:
            self.norm_grads = [torch.zeros_like(self.weight), torch.zeros_like(self.weight)]

    def backward(self, tile: Tile, grad: Tensor) -> None:
        """Collect the gradient of the edges of `tile`, which were computed last."""
        if self.turned is not None:
            box = grad.view(*tile.shape, -1)
            self.grad[tile.nodes].add_((box * self.turned[tile.offsets, tile.nodes]).sum(dim=0))
            torch.mul(box, self.kept[tile.nodes], out=self.at_second.room(tile))
            self.at_second.add(self.grad)
        else:
            self.norm.backward(grad, self.norm_grads, out=self.grad[tile.rows])


class Ends:
    """The attention of edges to their end nodes, tile by tile, and its gradients; see `EdgeBlock.attend`.

    Args:
        folded: (N, D), u of `EdgeBlock.fold`.
        offset: (N,), c likewise.
        values: (N, D), V g likewise.
        turned_ends: these three, `turned`.
        mask: (2, E), which scales the attention to either end, if any.
    """

    def __init__(
        self, folded: Tensor, offset: Tensor, values: Tensor, turned_ends: Sequence[Turned], mask: Tensor | None
    ) -> None:
        self.ends, self.turned, self.mask = (folded, offset, values), turned_ends, mask
        self.scale = 1 / math.sqrt(folded.shape[1])

    def attend(self, tile: Tile, edges: Tensor) -> Tensor:
        """Return the (R, D) edges plus their attention to their two ends."""
        folded_i, offset_i, value_i = (x[tile.nodes] for x in self.ends)
        folded_j, offset_j, value_j = (x[tile.offsets, tile.nodes] for x in self.turned)
        self.values = value_i, value_j
        self.edges = edges.view(*tile.shape, -1)
        self.between = torch.sub(folded_i, folded_j, out=tile.box(folded_i))
        score = (self.edges * self.between).sum(dim=2) + (offset_i - offset_j)
        score = score * self.scale
        self.attention = [torch.sigmoid(score), torch.sigmoid(-score)]
        self.tile_mask = None if self.mask is None else self.mask[:, tile.rows].view(2, *tile.shape)
        self.weights = self.attention
        if self.tile_mask is not None:
            self.weights = [a * m for a, m in zip(self.attention, self.tile_mask, strict=True)]
        out = torch.addcmul(self.edges, self.weights[0][..., None], value_i)
        return out.addcmul_(self.weights[1][..., None], value_j).flatten(0, 1)

    def start_backward(self) -> None:
        """Prepare to collect the gradients of the nodes."""
        self.grads = [torch.zeros_like(x) for x in self.ends]
        self.wide_at_second, self.at_second = SecondEnds(self.grads[0]), SecondEnds(self.grads[1])

    def backward(self, tile: Tile, grad: Tensor) -> Tensor:
        """Return the gradient of the (R, D) edges of `tile`, attended last; add those of the nodes."""
        folded, offset, values = self.grads
        box = grad.view(*tile.shape, -1)
        values[tile.nodes].add_((self.weights[0][..., None] * box).sum(dim=0))
        torch.mul(self.weights[1][..., None], box, out=self.wide_at_second.room(tile))
        self.wide_at_second.add(values)
        by_end = [(box * end).sum(dim=2) for end in self.values]
        if self.tile_mask is not None:
            by_end = [g * m for g, m in zip(by_end, self.tile_mask, strict=True)]
        score = (by_end[0] - by_end[1]) * self.attention[0] * self.attention[1] * self.scale
        offset[tile.nodes].add_(score.sum(dim=0))
        back = torch.neg(score, out=self.at_second.room(tile))
        self.at_second.add(offset)
        pull = torch.mul(back[..., None], self.edges, out=self.wide_at_second.room(tile))
        folded[tile.nodes].sub_(pull.sum(dim=0))
        self.wide_at_second.add(folded)
        return torch.addcmul(box, score[..., None], self.between).flatten(0, 1)


class PostNorm:
    """LayerNorm(GELU(x)) of (R, D) rows, and its gradient."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.x, self.weight = x, weight
        self.activated = F.gelu(x)
        self.out, self.mean, self.rstd = torch.native_layer_norm(self.activated, (x.shape[1],), weight, bias, NORM_EPS)

    def backward(self, grad: Tensor, sums: list[Tensor] | None, out: Tensor | None = None) -> Tensor:
        """Return the gradient of x, in `out` if given; add those of weight and bias to `sums`."""
        want_parameters = sums is not None
        grad, weight, bias = torch.ops.aten.native_layer_norm_backward(
            grad, self.activated, self.x.shape[1:], self.mean, self.rstd, self.weight, self.weight,
            [True, want_parameters, want_parameters],
        )  # fmt: skip
        if sums is not None:
            sums[0] += weight
            sums[1] += bias
        return gelu_gradient(grad, self.x, grad if out is None else out)


def gelu_gradient(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """Write the gradient of x, from that of GELU(x), to `out`, which may be `grad`; return it. All are contiguous."""
    return torch.ops.aten.gelu_backward(grad, x, grad_input=out)


def plain_post_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return LayerNorm(GELU(x)) in a form that autograd can differentiate."""
    return F.layer_norm(F.gelu(x), x.shape[1:], weight, bias, NORM_EPS)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, summed up in its dtype."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total += left @ right

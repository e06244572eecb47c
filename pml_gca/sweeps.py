"""The edge side of the propagation, tile by tile, with gradients written out.

Each function here computes what its plain form in :mod:`pml_gca.propagation` says, and is tested against it. It goes
over the edges in tiles that stay in the cache, keeps one (E, D) tensor a layer - the edges before their post-norm - and
computes anew, in the backward sweep, what costs no matrix product. The hidden activations of the edge MLP, four times
as wide, are kept where memory allows, and else computed anew as well. Statistics, norms and sums are in float32 or
wider; matrix products are in the dtype of autocast or of the parameters.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tiles import Tile, once, twice

NORM_EPS = 1e-5
Method = TypeVar("Method", bound=Callable[..., Any])


def without_autocast(method: Method) -> Method:
    """Run a function's forward or backward as written: it casts by itself, and backward may run inside autocast."""

    @functools.wraps(method)
    def run(ctx: Any, *args: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return cast(Method, run)


@dataclass
class Wanted:
    """Which gradients a backward pass is for; switched by whoever runs several through one graph."""

    embeddings: bool = True
    parameters: bool = True


@dataclass(frozen=True)
class SweepPlan:
    """How edges are swept.

    Attributes:
        tiles: what is computed at a time.
        num_edges: E.
        matmul_dtype: of matrix products.
        keep_hidden: keep the hidden activations of MLPs for the backward pass, rather than compute them anew.
        wanted: see :class:`Wanted`.
    """

    tiles: Sequence[Tile]
    num_edges: int
    matmul_dtype: torch.dtype
    keep_hidden: bool
    wanted: Wanted = field(default_factory=Wanted)


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

    def start_backward(self, wanted: Wanted) -> None:
        """Prepare to collect gradients."""
        self.sums = None
        if self.weight is not None and wanted.parameters:
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


class EdgeMessages(torch.autograd.Function):
    """Σ_j GELU(W e_ij + b) for every node i, self pairs once: (N, D). Section 2.2 of the propagation."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: SweepPlan,
        num_nodes: int,
        kept: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        edges = EdgeRows(kept, norm_weight, norm_bias)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        total = kept.new_zeros(2 * num_nodes, kept.shape[1])
        hidden = []
        for tile in plan.tiles:
            before = torch.addmm(b, edges(tile).to(w.dtype), w.t())
            if plan.keep_hidden:
                hidden.append(before)
            messages = tile.box(F.gelu(before).to(total.dtype))
            tile.add_to_first(total, messages)
            tile.add_to_second(total, messages, skip_self=True)
        ctx.plan = plan
        ctx.save_for_backward(kept, norm_weight, norm_bias, weight, bias, *hidden)
        return once(total)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: SweepPlan = ctx.plan
        kept, norm_weight, norm_bias, weight, bias, *hidden = ctx.saved_tensors
        wanted = plan.wanted
        edges = EdgeRows(kept, norm_weight, norm_bias)
        edges.start_backward(wanted)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        want_edges = wanted.embeddings or not edges.is_first
        grad_w, grad_b = kept.new_zeros(weight.shape), kept.new_zeros(bias.shape)
        at_nodes = twice(grad)
        for index, tile in enumerate(plan.tiles):
            e = edges(tile).to(w.dtype)
            before = hidden[index] if plan.keep_hidden else torch.addmm(b, e, w.t())
            messages = tile.first(at_nodes) + tile.second(at_nodes)
            if tile.offset == 0:
                messages[0] = tile.first(at_nodes)
            g = torch.ops.aten.gelu_backward(messages.flatten(0, 1).to(w.dtype), before)
            if wanted.parameters:
                add_product(grad_w, g.t(), e)
                grad_b += g.sum(dim=0)
            if want_edges:
                edges.backward(tile, (g @ w).to(kept.dtype))
        grads = edges.gradients() if want_edges else (None, None, None)
        own = (grad_w, grad_b) if wanted.parameters else (None, None)
        return None, None, *grads, *own


class EdgeUpdate(torch.autograd.Function):
    r"""The edge block up to its last post-norm: t = norm(attended + e), MLP(t) + t, both (E, D).

    ``folded``, ``offset`` and ``values`` are u, c and V g of the nodes (see ``EdgeBlock.attend``); ``mask`` (2, E), if
    any, scales the attention to either end. ``w2`` and ``b2`` include the MLP's LayerNorm's scale and shift.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: SweepPlan,
        kept: Tensor,
        in_weight: Tensor | None,
        in_bias: Tensor | None,
        folded: Tensor,
        offset: Tensor,
        values: Tensor,
        mask: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
    ) -> Tensor:
        edges = EdgeRows(kept, in_weight, in_bias)
        ends = [twice(x) for x in (folded, offset, values)]
        dtype = plan.matmul_dtype
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        out = kept.new_empty(plan.num_edges, folded.shape[1])
        hidden = []
        for tile in plan.tiles:
            attended = Attended(tile, edges(tile), ends, mask)
            t = PostNorm(attended.out, norm_weight, norm_bias).out
            before = torch.addmm(c1, t.to(dtype), v1.t())
            after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            if plan.keep_hidden:
                hidden += [before, after, rstd]
            torch.add(t, b2, out=out[tile.rows])
            add_product(out[tile.rows], after, v2.t())
        ctx.plan = plan
        saved = (kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2)
        ctx.save_for_backward(*saved, *hidden)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: SweepPlan = ctx.plan
        wanted, dtype = plan.wanted, plan.matmul_dtype
        saved, hidden = ctx.saved_tensors[:12], ctx.saved_tensors[12:]
        kept, in_weight, in_bias, folded, offset, values, mask, norm_weight, norm_bias, w1, b1, w2 = saved
        edges = EdgeRows(kept, in_weight, in_bias)
        edges.start_backward(wanted)
        want_edges = wanted.embeddings or not edges.is_first
        ends = [twice(x) for x in (folded, offset, values)]
        end_grads = [torch.zeros_like(x) for x in ends]
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        norm_sums = [torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)] if wanted.parameters else None
        grad_w1, grad_b1, grad_w2, grad_b2 = (kept.new_zeros(x) for x in (w1.shape, b1.shape, w2.shape, (w2.shape[0],)))
        for index, tile in enumerate(plan.tiles):
            attended = Attended(tile, edges(tile), ends, mask)
            norm = PostNorm(attended.out, norm_weight, norm_bias)
            t = norm.out.to(dtype)
            if plan.keep_hidden:
                before, after, rstd = hidden[3 * index : 3 * index + 3]
            else:
                before = torch.addmm(c1, t, v1.t())
                after, _, rstd = torch.native_layer_norm(F.gelu(before), (len(v1),), None, None, NORM_EPS)
            out_grad = grad[tile.rows]
            # The norm's spread scales its gradient: scaled rows here are fewer than hidden channels there.
            g = (out_grad * rstd).to(dtype) @ v2
            one, zero = torch.ones_like(rstd), torch.zeros_like(rstd)
            g, _, _ = torch.ops.aten.native_layer_norm_backward(
                g, after, (len(v1),), zero, one, None, None, [True, False, False]
            )
            g = torch.ops.aten.gelu_backward(g, before)
            if wanted.parameters:
                add_product(grad_w2, out_grad.t().to(dtype), after)
                grad_b2 += out_grad.sum(dim=0)
                add_product(grad_w1, g.t(), t)
                grad_b1 += g.sum(dim=0)
            t_grad = out_grad.clone()
            add_product(t_grad, g, v1)
            edge_grad = attended.backward(norm.backward(t_grad, norm_sums), end_grads)
            if want_edges:
                edges.backward(tile, edge_grad)
        grads = edges.gradients() if want_edges else (None, None, None)
        own = [*(norm_sums or ()), grad_w1, grad_b1, grad_w2, grad_b2] if wanted.parameters else [None] * 6
        return None, *grads, *(once(x) for x in end_grads), None, *own


class Attended:
    """Edges plus their attention to two end nodes, for one tile, and the gradient."""

    def __init__(self, tile: Tile, edges: Tensor, ends: list[Tensor], mask: Tensor | None) -> None:
        self.tile, self.ends = tile, ends
        folded, offset, values = ends
        self.edges = tile.box(edges)
        self.scale = 1 / math.sqrt(edges.shape[1])
        self.between = tile.first(folded) - tile.second(folded)
        score = (self.edges * self.between).sum(dim=2) + (tile.first(offset) - tile.second(offset))
        self.attention = [torch.sigmoid(score * self.scale), torch.sigmoid(-score * self.scale)]
        self.mask = [tile.box(m[tile.rows]) for m in mask] if mask is not None else None
        self.weights = self.attention
        if self.mask is not None:
            self.weights = [a * m for a, m in zip(self.attention, self.mask, strict=True)]
        out = torch.addcmul(self.edges, self.weights[0][..., None], tile.first(values))
        self.out = out.addcmul_(self.weights[1][..., None], tile.second(values)).flatten(0, 1)

    def backward(self, grad: Tensor, end_grads: list[Tensor]) -> Tensor:
        """Gradient of the edges, (R, D); those of the ends are added to ``end_grads``."""
        tile, (folded, offset, values) = self.tile, end_grads
        box = tile.box(grad)
        tile.add_to_first(values, self.weights[0][..., None] * box)
        tile.add_to_second(values, self.weights[1][..., None] * box)
        by_end = [(box * end).sum(dim=2) for end in (tile.first(self.ends[2]), tile.second(self.ends[2]))]
        if self.mask is not None:
            by_end = [g * m for g, m in zip(by_end, self.mask, strict=True)]
        score = (by_end[0] - by_end[1]) * self.attention[0] * self.attention[1] * self.scale
        tile.add_to_first(offset, score)
        tile.add_to_second(offset, -score)
        pull = score[..., None] * self.edges
        tile.add_to_first(folded, pull)
        tile.add_to_second(folded, pull.neg_())
        return torch.addcmul(box, score[..., None], self.between).flatten(0, 1)


@torch.no_grad()
def edge_statistics(
    plan: SweepPlan, kept: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mean and (biased) variance, each channel's, of all edges as ordered pairs."""
    edges = EdgeRows(kept, norm_weight, norm_bias)
    count = kept.new_zeros(())
    mean, squares = kept.new_zeros(kept.shape[1]), kept.new_zeros(kept.shape[1])
    for tile in plan.tiles:
        rows, weights = edges(tile), tile.multiplicity(kept).view(-1, 1)
        new = weights.sum()
        new_mean = (rows * weights).sum(dim=0) / new
        new_squares = ((rows - new_mean).square_() * weights).sum(dim=0)
        # Two groups merge without the loss of digits of a sum of squares.
        apart, both = new_mean - mean, count + new
        mean = mean + apart * (new / both)
        squares = squares + new_squares + apart.square() * (count * new / both)
        count = both
    return count, mean, squares / count


class EdgeCoefficients(torch.autograd.Function):
    """sigmoid(W BatchNorm(e) + b) of all edges, (E, D), with given statistics.

    ``scale`` is the BatchNorm's. Of batch statistics (``count`` not None) the gradient includes their own.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        plan: SweepPlan,
        kept: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        count: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        edges = EdgeRows(kept, norm_weight, norm_bias)
        w, b = weight.to(plan.matmul_dtype), bias.to(plan.matmul_dtype)
        out = kept.new_empty(plan.num_edges, len(w), dtype=plan.matmul_dtype)
        for tile in plan.tiles:
            normalised = (edges(tile) - mean).mul_(rstd * scale)
            torch.addmm(b, normalised.to(w.dtype), w.t(), out=out[tile.rows])
            out[tile.rows].sigmoid_()
        ctx.plan = plan
        ctx.save_for_backward(kept, norm_weight, norm_bias, count, mean, rstd, scale, weight, out)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: SweepPlan = ctx.plan
        kept, norm_weight, norm_bias, count, mean, rstd, scale, weight, out = ctx.saved_tensors
        w = weight.to(plan.matmul_dtype)
        edges = EdgeRows(kept, norm_weight, norm_bias)
        edges.start_backward(plan.wanted)
        # First what all edges together say: of the parameters and, through them, of the batch's statistics.
        by_pair, grad_b = kept.new_zeros(weight.shape), kept.new_zeros(len(w))
        for tile in plan.tiles:
            logits = torch.ops.aten.sigmoid_backward(grad[tile.rows], out[tile.rows])
            add_product(by_pair, logits.t(), (edges(tile) - mean).mul_(rstd).to(w.dtype))
            grad_b += logits.sum(dim=0)
        wide = weight.to(kept.dtype)
        grad_scale = (by_pair * wide).sum(dim=0)
        shift = wide.t().mv(grad_b) * scale
        for tile in plan.tiles:
            logits = torch.ops.aten.sigmoid_backward(grad[tile.rows], out[tile.rows])
            rows = edges(tile)
            g = (logits @ w).to(kept.dtype) * (scale * rstd)
            if count is not None:
                normalised = (rows - mean).mul_(rstd)
                common = torch.addcmul(shift, normalised, grad_scale * scale)
                g = torch.addcmul(g, common * (rstd / count), tile.multiplicity(kept).view(-1, 1), value=-1)
            edges.backward(tile, g)
        own = (grad_scale, by_pair * scale, grad_b) if plan.wanted.parameters else (None,) * 3
        return None, *edges.gradients(), None, None, None, *own

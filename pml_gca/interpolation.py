"""Channel-adaptive interpolation: coefficients become candidates, candidates one negative per anchor and class.

Axis legend: N nodes, of which the first A are anchors; E undirected edges between nodes; S synthetic negatives;
D channels. Section 3.4 of https://arxiv.org/abs/2411.13145
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .graph import compute_dtype, edge_pairs
from .tiles import Tile, once, twice


def next_positive(labels: Tensor, num_anchors: int | None = None) -> tuple[Tensor, Tensor]:
    """The next sample of each anchor's class in batch order, cyclically.

    Args:
        labels: (N,) long.
        num_anchors: A, how many of the first nodes are anchors; all by default.

    Returns:
        ``(positives, has_positive)``: (A,) long and (A,) bool. An anchor alone in its class points at itself.
    """
    node = torch.arange(len(labels), device=labels.device)
    anchor = node[:num_anchors, None]
    steps = (node - anchor - 1) % max(len(labels), 1)  # the anchor itself is the farthest of its class
    steps = steps.masked_fill(labels[:num_anchors, None] != labels, len(labels))
    positives = steps.argmin(dim=1) if len(labels) else node
    return positives, positives != node[:num_anchors]


@dataclass(frozen=True)
class CandidatePlan:
    """Which real samples each synthetic negative is made of; depends on labels alone.

    Attributes:
        slots: (A, N) long, the synthetic negative that the candidate of an anchor and a node is merged into, and S
            where the two have none: of one class, or of an anchor without a positive.
        synthetic_anchors: (S,) long, ascending.
        synthetic_labels: (S,) long, ascending within an anchor.
        positives: (A,) long, see :func:`next_positive`.
        has_positive: (A,) bool; anchors without a positive generate nothing.
        by_class: (N,) long, nodes sorted by class, in batch order within a class.
        opens_class: (N,) bool, of the nodes so sorted: the first of its class.
        closes_class: (N,) long, of the nodes so sorted: position of the last one of the same class.
    """

    slots: Tensor
    synthetic_anchors: Tensor
    synthetic_labels: Tensor
    positives: Tensor
    has_positive: Tensor
    by_class: Tensor
    opens_class: Tensor
    closes_class: Tensor

    def to(self, device: torch.device) -> "CandidatePlan":
        """The plan on another device, without waiting for it."""
        return CandidatePlan(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def plan_candidates(labels: Tensor, num_anchors: int | None = None) -> CandidatePlan:
    """Pair every anchor that has a positive with all nodes of other classes, by (anchor, class).

    How many there are depends on the labels' values: with labels on the host, no device has to be waited for.

    Args:
        labels: (N,) long, any composition and order.
        num_anchors: A, how many of the first nodes are anchors; all by default.
    """
    classes, class_of, class_size = labels.unique(return_inverse=True, return_counts=True)
    anchor_class = class_of[:num_anchors]
    positives, has_positive = next_positive(labels, num_anchors)
    cell_anchor, cell_class = (
        (anchor_class[:, None] != torch.arange(len(classes), device=labels.device)) & has_positive[:, None]
    ).nonzero(as_tuple=True)
    # Every generating anchor meets all classes but its own, so the slot follows from two ranks.
    anchor_rank = has_positive.cumsum(0) - 1
    class_rank = class_of - (class_of > anchor_class[:, None]).long()
    generates = (anchor_class[:, None] != class_of) & has_positive[:, None]
    by_class = class_of.argsort(stable=True)
    class_end = class_size.cumsum(0)
    position = torch.arange(len(labels), device=labels.device)
    return CandidatePlan(
        slots=torch.where(generates, anchor_rank[:, None] * (len(classes) - 1) + class_rank, len(cell_anchor)),
        synthetic_anchors=cell_anchor,
        synthetic_labels=classes[cell_class],
        positives=positives,
        has_positive=has_positive,
        by_class=by_class,
        opens_class=position == (class_end - class_size)[class_of[by_class]],
        closes_class=class_end[class_of[by_class]] - 1,
    )


def merging_weights(draws: Tensor, plan: CandidatePlan) -> Tensor:
    r"""Weights with which the candidates of one class merge into one negative, for uniform draws u.

    The candidates of a class, in batch order, merge by t ← ẑ_1, then t ← (1 − u_m) ẑ_m + u_m t. Unrolled, candidate m
    weighs :math:`(1 - u_m) \prod_{l > m} u_l`, with u_1 taken as 0; the weights of a class sum to 1.

    Args:
        draws: (A, N) in [0, 1], one per anchor and node; those of the first node of a class are not used.
        plan: as from :func:`plan_candidates`.

    Returns:
        (A, N), same dtype as ``draws``.
    """
    order, first = plan.by_class, plan.opens_class
    u = draws[:, order].double().masked_fill(first, 0.0)  # a long product of draws, as a difference of log sums
    log_product = u.masked_fill(first, 1.0).clamp_min(torch.finfo(u.dtype).tiny).log().cumsum(dim=1)
    weights = (1 - u) * (log_product[:, plan.closes_class] - log_product).exp()
    return torch.empty_like(draws).index_copy(1, order, weights.to(draws.dtype))


def pull_ratio(near: Tensor, far: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""How the coefficients make the ratio :math:`r_{ij} = a + b\,\lambda_{ij}` of :func:`interpolate`.

    Args:
        near: d⁺, distance of the anchor's positive.
        far: d⁻, distance of the negative; same shape, or one that broadcasts.
        strength: s = e^{-α/L} in [0, 1].

    Returns:
        a = d⁺/d⁻ and b = s(1 − a) where d⁺ < d⁻, else 1 and 0: the negative stays.
    """
    pullable = near < far
    constant = torch.where(pullable, near / far.where(pullable, 1.0), 1.0)
    return constant, (1 - constant) * strength


def interpolate(
    anchors: Tensor, negatives: Tensor, coefficients: Tensor, positive_distance: Tensor, strength: Tensor | float
) -> Tensor:
    r"""Pull real negatives toward their anchors, channel by channel, never nearer than the positive.

    .. math::
        r_{ij} = (d^+ + (d^- - d^+)\,\lambda_{ij}\,s) / d^-, \qquad
        \hat{z}_{ij} = z_i + r_{ij} \odot (z_j - z_i) \text{ if } d^+ < d^- \text{ else } z_j

    Args:
        anchors: (P, D), z_i.
        negatives: (P, D), z_j.
        coefficients: (P, D) in [0, 1], λ_ij; 1 keeps a channel at the real negative when ``strength`` is 1.
        positive_distance: (P,), d⁺ of each anchor.
        strength: s = e^{-α/L} in [0, 1].

    Returns:
        (P, D) candidates ẑ_ij, in float32 or wider.
    """
    dtype = compute_dtype(anchors, negatives)
    anchors, negatives = anchors.to(dtype), negatives.to(dtype)
    far = torch.linalg.vector_norm(negatives - anchors, dim=1, keepdim=True)
    constant, slope = pull_ratio(positive_distance.to(dtype)[:, None], far, strength)
    return torch.lerp(anchors, negatives, constant + slope * coefficients.to(dtype))


def positive_distances(nodes: Tensor, plan: CandidatePlan) -> Tensor:
    """d⁺ of every anchor, (A,), of (N, D) nodes; 0 where there is no positive."""
    positives = nodes.index_select(0, plan.positives)
    return torch.linalg.vector_norm(nodes[: len(positives)] - positives, dim=1)


def synthesize(
    nodes: Tensor,
    coefficients: Tensor,
    tiles: Sequence[Tile],
    plan: CandidatePlan,
    weights: Tensor,
    strength: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Interpolate and merge all candidates of a plan; no candidate is kept.

    Args:
        nodes: (N, D).
        coefficients: (E, D), of undirected edges as :func:`pml_gca.graph.edge_pairs` lists them.
        tiles: the edges in :func:`pml_gca.tiles.edge_tiles`.
        plan: as from :func:`plan_candidates`.
        weights: (A, N), as from :func:`merging_weights`.
        strength: s = e^{-α/L} in [0, 1].

    Returns:
        The (S, D) synthetic negatives, in float32 or wider, twice: gradients of the first reach the nodes alone, those
        of the second the coefficients alone.
    """
    z = nodes.to(compute_dtype(nodes))
    num_anchors, num_nodes = plan.slots.shape
    if len(plan.synthetic_anchors) == 0:
        return z[:0], coefficients[:0].to(z.dtype)
    first, second = edge_pairs(num_nodes, z.device)
    rest = (num_nodes - num_anchors, num_nodes)  # references: no anchors, but they have edges
    slots = torch.cat([plan.slots, plan.slots.new_full(rest, len(plan.synthetic_anchors))])
    weights = torch.cat([weights.to(z.dtype), weights.new_zeros(rest, dtype=z.dtype)])
    # A pair without a slot adds nothing to the first one.
    has_none = slots == len(plan.synthetic_anchors)
    slots, weights = slots.masked_fill(has_none, 0), weights.masked_fill(has_none, 0.0)
    near = torch.cat([positive_distances(z, plan), z.new_zeros(num_nodes - num_anchors)])
    by_edge = [torch.stack([x[first, second], x[second, first]]) for x in (slots, weights)]
    strength = torch.as_tensor(strength, dtype=z.dtype, device=z.device)
    for_nodes, for_coefficients = Synthesis.apply(
        tiles, z, coefficients, near, strength, *by_edge, plan.synthetic_anchors
    )
    return for_nodes, for_coefficients


class Synthesis(torch.autograd.Function):
    """Sums of weighted candidates, tile by tile, with the gradient written out; see :func:`synthesize`.

    With the weights of a negative summing to 1, it is z_i + Σ_j w_ij (a_ij + b_ij λ_ij) ⊙ (z_j − z_i).
    """

    @staticmethod
    def forward(
        ctx: Any,
        tiles: Sequence[Tile],
        nodes: Tensor,
        coefficients: Tensor,
        near: Tensor,
        strength: Tensor,
        slots: Tensor,
        weights: Tensor,
        synthetic_anchors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        synthetic = nodes.index_select(0, synthetic_anchors)
        z, d = twice(nodes), twice(near)
        for tile in tiles:
            pull = Pull(tile, z, d, coefficients, strength)
            for way, sign in enumerate((1, -1)):
                constant, slope = (x * (sign * tile.box(weights[way, tile.rows])) for x in pull.ratio[way])
                change = torch.addcmul(constant[..., None], slope[..., None], pull.coefficients).mul_(pull.apart)
                synthetic.index_add_(0, slots[way, tile.rows], change.flatten(0, 1))
        ctx.tiles = tiles
        ctx.save_for_backward(nodes, coefficients, near, strength, slots, weights, synthetic_anchors)
        ctx.set_materialize_grads(False)
        return synthetic, synthetic.view_as(synthetic)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_nodes: Tensor | None, for_coefficients: Tensor | None) -> tuple[Tensor | None, ...]:
        nodes, coefficients, near, strength, slots, weights, synthetic_anchors = ctx.saved_tensors
        z, d = twice(nodes), twice(near)
        grad_z, grad_d, grad_coefficients = torch.zeros_like(z), torch.zeros_like(d), torch.empty_like(coefficients)
        for tile in ctx.tiles:
            pull = Pull(tile, z, d, coefficients, strength)
            rows = [slots[way, tile.rows] for way in (0, 1)]
            scales = [tile.box(weights[way, tile.rows])[..., None] for way in (0, 1)]
            if for_coefficients is not None:
                there, back = (tile.box(for_coefficients.index_select(0, r)) for r in rows)
                there *= scales[0] * pull.ratio[0][1][..., None]
                there.addcmul_(back, scales[1] * pull.ratio[1][1][..., None], value=-1)
                grad_coefficients[tile.rows] = (there * pull.apart).flatten(0, 1)
            if for_nodes is not None:
                there, back = (
                    tile.box(for_nodes.index_select(0, r)).mul_(w) for r, w in zip(rows, scales, strict=True)
                )
                apart = pull.backward((there, back), grad_d)
                tile.add_to_second(grad_z, apart)
                tile.add_to_first(grad_z, apart.neg_())
        grad_nodes = grad_near = None
        if for_nodes is not None:
            grad_nodes, grad_near = once(grad_z).index_add_(0, synthetic_anchors, for_nodes), once(grad_d)
        for_edges = None if for_coefficients is None else grad_coefficients
        return None, grad_nodes, for_edges, grad_near, None, None, None, None


class Pull:
    """What pulls the candidates of one tile: each edge's second end toward its first, and the other way round."""

    def __init__(self, tile: Tile, nodes: Tensor, near: Tensor, coefficients: Tensor, strength: Tensor) -> None:
        self.tile, self.strength = tile, strength
        self.coefficients = tile.box(coefficients[tile.rows]).to(nodes.dtype)
        self.apart = tile.second(nodes) - tile.first(nodes)
        self.far = torch.linalg.vector_norm(self.apart, dim=2)
        self.near = (tile.first(near).expand_as(self.far), tile.second(near))
        self.ratio = [pull_ratio(d, self.far, strength) for d in self.near]

    def backward(self, grads: tuple[Tensor, Tensor], near_grads: Tensor) -> Tensor:
        """Gradient of z_j − z_i, of those of the two ways' candidates; that of d⁺ is added to ``near_grads``."""
        far = self.far.where(self.far > 0, 1.0)
        total, far_grad = torch.zeros_like(self.apart), torch.zeros_like(far)
        for way, (grad, sign) in enumerate(zip(grads, (1, -1), strict=True)):
            constant, slope = self.ratio[way]
            along = grad * self.apart
            by_constant = along.sum(dim=2) - self.strength * (along.mul_(self.coefficients)).sum(dim=2)
            by_constant = torch.where(self.near[way] < self.far, by_constant * sign / far, 0.0)
            add = self.tile.add_to_second if way else self.tile.add_to_first
            add(near_grads, by_constant)
            far_grad -= by_constant * constant
            total.addcmul_(torch.addcmul(constant[..., None], slope[..., None], self.coefficients), grad, value=sign)
        return total.addcmul_((far_grad / far)[..., None], self.apart)

"""Channel-adaptive interpolation: coefficients become candidates, candidates one negative per anchor and class.

Axis legend: N nodes, of which the first A are anchors; E undirected edges between nodes; S synthetic negatives;
D channels. Section 3.4 of https://arxiv.org/abs/2411.13145
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..utils.dtypes import compute_dtype
from ..utils.host import to_device
from ..utils.norms import length, unit

MERGINGS = ("random", "mean", "hardest")


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
        positives: (A,) long, see `next_positive`.
        has_positive: (A,) bool; anchors without a positive generate nothing.
        by_class: (N,) long, nodes sorted by class, in batch order within a class.
        opens_class: (N,) bool, of the nodes so sorted: the first of its class.
        closes_class: (N,) long, of the nodes so sorted: position of the last one of the same class.
        largest_class: how many nodes the largest class has.
    """

    slots: Tensor
    synthetic_anchors: Tensor
    synthetic_labels: Tensor
    positives: Tensor
    has_positive: Tensor
    by_class: Tensor
    opens_class: Tensor
    closes_class: Tensor
    largest_class: int

    def to(self, device: torch.device) -> "CandidatePlan":
        """The plan on another device, without waiting for it."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {name: to_device(x, device) for name, x in values if isinstance(x, Tensor)}
        return replace(self, **moved)


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
        largest_class=int(class_size.max()) if len(labels) else 0,
    )


def merging_weights(draws: Tensor, plan: CandidatePlan) -> Tensor:
    r"""Weights with which the candidates of one class merge into one negative, for uniform draws u.

    The candidates of a class, in batch order, merge by t ← ẑ_1, then t ← (1 − u_m) ẑ_m + u_m t. Unrolled, candidate m
    weighs :math:`(1 - u_m) \prod_{l > m} u_l`, with u_1 taken as 0; the weights of a class sum to 1.

    Args:
        draws: (A, N) in [0, 1], one per anchor and node; those of the first node of a class are not used.
        plan: as from `plan_candidates`.

    Returns:
        (A, N), same dtype as ``draws``.
    """
    order, position = plan.by_class, torch.arange(draws.shape[1], device=draws.device)
    u = draws[:, order].masked_fill(plan.opens_class, 0.0)
    # Products of all later draws of the class, by doubling: that of the next one, of the next two, of the next four.
    product, step = u.roll(-1, dims=1).masked_fill(position == plan.closes_class, 1.0), 1
    while step < plan.largest_class - 1:
        ahead = position + step
        inside = ahead <= plan.closes_class
        product = product * product[:, ahead.clamp_max(len(position) - 1)].masked_fill(~inside, 1.0)
        step *= 2
    return torch.empty_like(draws).index_copy(1, order, (1 - u) * product)


def mean_weights(plan: CandidatePlan, like: Tensor) -> Tensor:
    """Weights by which the candidates of one class merge into their mean: (A, N), with shape and dtype of ``like``."""
    position = torch.arange(len(plan.by_class), device=like.device)
    class_start = torch.where(plan.opens_class, position, 0).cummax(0).values
    share = (plan.closes_class - class_start + 1).to(like.dtype).reciprocal()
    return torch.empty_like(like).index_copy(1, plan.by_class, share.expand_as(like))


@torch.no_grad()
def hardest_weights(nodes: Tensor, plan: CandidatePlan) -> Tensor:
    """Weights that leave one candidate of each class: that of the sample nearest to the anchor.

    Nearest is what has the largest cosine similarity; equally near ones share the weight. No gradient flows into the
    choice.

    Args:
        nodes: (N, D); the first A are anchors.
        plan: as from `plan_candidates`.

    Returns:
        (A, N), in float32 or wider; the weights of a class sum to 1.
    """
    directions, _ = unit(nodes.to(compute_dtype(nodes)))
    with torch.autocast(nodes.device.type, enabled=False):
        similarity = directions[: len(plan.slots)] @ directions.t()
    order = plan.by_class
    class_of = torch.empty_like(order).index_copy(0, order, plan.opens_class.cumsum(0) - 1).expand_as(similarity)
    largest = torch.full_like(similarity, -torch.inf).scatter_reduce(1, class_of, similarity, "amax")
    nearest = (similarity == largest.gather(1, class_of)).to(directions.dtype)
    shared_by = torch.zeros_like(nearest).scatter_add(1, class_of, nearest)
    return nearest / shared_by.gather(1, class_of)


def class_weights(merging: str, nodes: Tensor, plan: CandidatePlan, draws: Tensor) -> Tensor:
    """Weights by which the candidates of one class merge into one negative.

    Args:
        merging: ``"random"``: `merging_weights` of the draws; ``"mean"``: `mean_weights`; ``"hardest"``:
            `hardest_weights`.
        nodes: (N, D).
        plan: as from `plan_candidates`.
        draws: (A, N) in [0, 1], uniform.

    Returns:
        (A, N).
    """
    if merging == "hardest":
        return hardest_weights(nodes, plan)
    return mean_weights(plan, draws) if merging == "mean" else merging_weights(draws, plan)


def pull_strength(alpha: float, metric_level: Tensor | float, dtype: torch.dtype | None = None) -> Tensor:
    """s = e^{-α/L}, 0-dimensional: 1 for an infinite level L, 0 for a level of 0 or below unless α is 0.

    It is on the device of the level, on the host if that is a number; of ``dtype``, by default as wide as the level.
    """
    if isinstance(metric_level, Tensor):
        level = metric_level.to(dtype or compute_dtype(metric_level))
    else:
        level = torch.tensor(metric_level, dtype=dtype or torch.float64, device="cpu")
    return torch.exp(-alpha / level.clamp_min(torch.finfo(level.dtype).tiny))


def pull_ratio(near: Tensor, far: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""How the coefficients make the ratio :math:`r_{ij} = a + b\,\lambda_{ij}` of `interpolate`.

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

    The form that the equation has in the paper; `synthesize` never builds all of them.

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
    far = length(negatives - anchors, keepdim=True)
    constant, slope = pull_ratio(positive_distance.to(dtype)[:, None], far, strength)
    return torch.lerp(anchors, negatives, constant + slope * coefficients.to(dtype))


def positive_distances(nodes: Tensor, plan: CandidatePlan) -> Tensor:
    """d⁺ of every anchor, (A,), of (N, D) nodes; 0 where there is no positive."""
    positives = nodes.index_select(0, plan.positives)
    return length(nodes[: len(positives)] - positives)

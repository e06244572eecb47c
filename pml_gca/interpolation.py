"""Channel-adaptive interpolation: coefficients become candidates, candidates one negative per anchor and class.

Pure functions of tensors. Axis legend: N nodes, of which the first A are anchors; P (anchor, real negative) pairs;
S synthetic negatives; D channels. Section 3.4 of https://arxiv.org/abs/2411.13145
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import compute_dtype


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
        anchors: (P,) long, anchor of each candidate.
        negatives: (P,) long, node of another class that the candidate starts from.
        slots: (P,) long, the synthetic negative that the candidate is merged into.
        synthetic_anchors: (S,) long, ascending.
        synthetic_labels: (S,) long, ascending within an anchor.
        positives: (A,) long, see :func:`next_positive`.
        has_positive: (A,) bool; anchors without a positive generate nothing.
    """

    anchors: Tensor
    negatives: Tensor
    slots: Tensor
    synthetic_anchors: Tensor
    synthetic_labels: Tensor
    positives: Tensor
    has_positive: Tensor


def plan_candidates(labels: Tensor, num_anchors: int | None = None) -> CandidatePlan:
    """Pair every anchor that has a positive with all nodes of other classes, grouped by (anchor, class).

    Args:
        labels: (N,) long, any composition and order.
        num_anchors: A, how many of the first nodes are anchors; all by default.
    """
    classes, class_of = labels.unique(return_inverse=True)
    anchor_class = class_of[:num_anchors]
    positives, has_positive = next_positive(labels, num_anchors)
    anchors, negatives = ((anchor_class[:, None] != class_of) & has_positive[:, None]).nonzero(as_tuple=True)
    cell_anchor, cell_class = (
        (anchor_class[:, None] != torch.arange(len(classes), device=labels.device)) & has_positive[:, None]
    ).nonzero(as_tuple=True)
    # Every generating anchor meets all classes but its own, so the slot follows from two ranks.
    anchor_rank = has_positive.cumsum(0)[anchors] - 1
    class_rank = class_of[negatives] - (class_of[negatives] > anchor_class[anchors]).long()
    return CandidatePlan(
        anchors=anchors,
        negatives=negatives,
        slots=anchor_rank * (len(classes) - 1) + class_rank,
        synthetic_anchors=cell_anchor,
        synthetic_labels=classes[cell_class],
        positives=positives,
        has_positive=has_positive,
    )


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
    nearest = positive_distance.to(dtype)[:, None]
    farthest = torch.linalg.vector_norm(negatives - anchors, dim=1, keepdim=True)
    pullable = nearest < farthest
    ratio = (nearest + (farthest - nearest) * (coefficients.to(dtype) * strength)) / farthest.where(pullable, 1.0)
    return torch.lerp(anchors, negatives, torch.where(pullable, ratio, 1.0))


def merging_weights(draws: Tensor, labels: Tensor) -> Tensor:
    r"""Weights with which the candidates of one class merge into one negative, for uniform draws u.

    The candidates of a class, in batch order, merge by t ← ẑ_1, then t ← (1 − u_m) ẑ_m + u_m t. Unrolled, candidate m
    weighs :math:`(1 - u_m) \prod_{l > m} u_l`, with u_1 taken as 0; the weights of a class sum to 1.

    Args:
        draws: (A, N) in [0, 1], one per anchor and node; those of the first node of a class are not used.
        labels: (N,) long.

    Returns:
        (A, N), same dtype as ``draws``.
    """
    if len(labels) == 0:
        return draws
    order = labels.argsort(stable=True)
    _, run, run_length = labels[order].unique_consecutive(return_inverse=True, return_counts=True)
    run_end = run_length.cumsum(0) - 1
    first = torch.arange(len(labels), device=labels.device) == (run_end - run_length + 1)[run]
    u = draws[:, order].double().masked_fill(first, 0.0)  # a long product of draws, as a difference of log sums
    log_product = u.masked_fill(first, 1.0).clamp_min(torch.finfo(u.dtype).tiny).log().cumsum(dim=1)
    weights = (1 - u) * (log_product[:, run_end[run]] - log_product).exp()
    return torch.empty_like(draws).index_copy(1, order, weights.to(draws.dtype))


def merge_candidates(candidates: Tensor, weights: Tensor, plan: CandidatePlan) -> Tensor:
    """Merge (P, D) candidates with their (A, N) weights into (S, D) synthetic negatives."""
    weighted = candidates * weights[plan.anchors, plan.negatives].to(candidates.dtype)[:, None]
    merged = candidates.new_zeros(len(plan.synthetic_anchors), candidates.shape[1])
    return merged.index_add(0, plan.slots, weighted)


def synthesize(
    nodes: Tensor, coefficients: Tensor, plan: CandidatePlan, weights: Tensor, strength: Tensor | float
) -> Tensor:
    """Interpolate and merge all candidates of a plan.

    Args:
        nodes: (N, D).
        coefficients: (P, D), of the plan's pairs.
        plan: as from :func:`plan_candidates`.
        weights: (A, N), as from :func:`merging_weights`.
        strength: s = e^{-α/L} in [0, 1].

    Returns:
        (S, D) synthetic negatives, in float32 or wider.
    """
    z = nodes.to(compute_dtype(nodes))
    positive_distance = torch.linalg.vector_norm(z[: len(plan.positives)] - z.index_select(0, plan.positives), dim=1)
    candidates = interpolate(
        z.index_select(0, plan.anchors),
        z.index_select(0, plan.negatives),
        coefficients,
        positive_distance.index_select(0, plan.anchors),
        strength,
    )
    return merge_candidates(candidates, weights, plan)

"""Channel-adaptive interpolation: how far coefficients pull a negative toward an anchor.

Axis legend: N nodes, of which the first A are anchors; E undirected edges between nodes; S synthetic negatives;
D channels. Section 3.4 of https://arxiv.org/abs/2411.13145
"""

import torch
from torch import Tensor

from ..utils.dtypes import compute_dtype
from ..utils.norms import length, scale_of
from .planning import CandidatePlan


def pull_strength(alpha: float, metric_level: Tensor | float, dtype: torch.dtype | None = None) -> Tensor:
    """Return s = e^{-α/L}, 0-dimensional: 1 for an infinite level L, 0 for a level of 0 or below unless α is 0.

    It is on the device of the level, or on the host if the level is a number. Its dtype is `dtype`; by default it is
    as wide as the level.
    """
    if isinstance(metric_level, Tensor):
        level = metric_level.to(dtype or compute_dtype(metric_level))
    else:
        level = torch.tensor(metric_level, dtype=dtype or torch.float64, device="cpu")
    return torch.exp(-alpha / level.clamp_min(torch.finfo(level.dtype).tiny))


def pull_ratio(near: Tensor, far: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    r"""Return a and b of the ratio $r_{ij} = a + b\,\lambda_{ij}$ of `interpolate`.

    Args:
        near: d⁺, distance of the anchor's positive.
        far: d⁻, distance of the negative; same shape, or one that broadcasts.
        strength: s = e^{-α/L} in [0, 1].

    Returns:
        a = d⁺/d⁻ and b = s(1 − a) where d⁺ < d⁻; else 1 and 0, which leave the negative where it is.
    """
    pullable = near < far
    constant = torch.where(pullable, near / far.where(pullable, 1.0), 1.0)
    return constant, (1 - constant) * strength


def interpolate(
    anchors: Tensor, negatives: Tensor, coefficients: Tensor, positive_distance: Tensor, strength: Tensor | float
) -> Tensor:
    r"""Pull real negatives toward their anchors, channel by channel, never nearer than the positive.

    $$
    r_{ij} = (d^+ + (d^- - d^+)\,\lambda_{ij}\,s) / d^-, \qquad
    \hat{z}_{ij} = z_i + r_{ij} \odot (z_j - z_i) \text{ if } d^+ < d^- \text{ else } z_j
    $$

    This is the paper's equation. `synthesize` computes the same without building all candidates.

    Args:
        anchors: (P, D), z_i.
        negatives: (P, D), z_j.
        coefficients: (P, D) in [0, 1], λ_ij; 1 keeps a channel at the real negative when `strength` is 1.
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
    """Return d⁺ of every anchor, (A,), for (N, D) nodes; 0 where there is no positive."""
    positives = nodes.index_select(0, plan.positives)
    return length(nodes[: len(positives)] - positives)


@torch.no_grad()
def hardness(nodes: Tensor, synthetic: Tensor, weights: Tensor, plan: CandidatePlan) -> float:
    """Return how near synthetic negatives are to their anchors, compared with the real samples that they are made of.

    This is the mean over negatives of ‖z_i − ẑ‖ / Σ_j w_ij ‖z_i − z_j‖. It waits for the device.

    Args:
        nodes: (N, D), z.
        synthetic: (S, D), ẑ, S > 0.
        weights: (A, N), as from `merging_weights`.
        plan: as from `plan_candidates`.

    Returns:
        1 for real negatives, less the further they are pulled; 1 where all distances are 0.
    """
    z = nodes.to(synthetic.dtype)
    scale = scale_of(z.flatten(), dim=0)
    z, synthetic = z / scale, synthetic / scale
    distance = torch.cdist(z[: len(plan.slots)], z, compute_mode="donot_use_mm_for_euclid_dist")
    merged = z.new_zeros(len(synthetic) + 1).index_add(0, plan.slots.flatten(), (distance * weights).flatten())
    real = merged[:-1]
    pulled = torch.linalg.vector_norm(z[plan.synthetic_anchors] - synthetic, dim=1)
    apart = real > 0
    return (pulled[apart] / real[apart]).mean().item() if apart.any() else 1.0

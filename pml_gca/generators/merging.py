"""Merging: the weights with which the candidates of one class become one negative.

Axis legend: N nodes, of which the first A are anchors. Section 3.4 of https://arxiv.org/abs/2411.13145
"""

import torch
from torch import Tensor

from ..utils.dtypes import compute_dtype
from ..utils.norms import unit
from .planning import CandidatePlan

MERGINGS = ("random", "mean", "hardest")


def merging_weights(draws: Tensor, plan: CandidatePlan) -> Tensor:
    r"""Return the weights with which the candidates of a class merge into one negative, for uniform draws u.

    The candidates of a class, in batch order, merge by t ← ẑ_1, then t ← (1 − u_m) ẑ_m + u_m t. Unrolled, candidate m
    weighs $(1 - u_m) \prod_{l > m} u_l$, with u_1 taken as 0; the weights of a class sum to 1.

    Args:
        draws: (A, N) in [0, 1], one per anchor and node; those of the first node of a class are not used.
        plan: as from `plan_candidates`.

    Returns:
        (A, N), same dtype as `draws`.
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
    """Return the weights of the candidates' mean in each class: (A, N), with shape and dtype of `like`."""
    position = torch.arange(len(plan.by_class), device=like.device)
    class_start = torch.where(plan.opens_class, position, 0).cummax(0).values
    share = (plan.closes_class - class_start + 1).to(like.dtype).reciprocal()
    return torch.empty_like(like).index_copy(1, plan.by_class, share.expand_as(like))


@torch.no_grad()
def hardest_weights(nodes: Tensor, plan: CandidatePlan) -> Tensor:
    """Return weights that leave one candidate of each class: that of the sample nearest to the anchor.

    The nearest sample has the largest cosine similarity; equally near ones share the weight. No gradient flows into the
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
    """Return the weights with which the candidates of a class merge into one negative.

    Args:
        merging: `"random"`: `merging_weights` of the draws; `"mean"`: `mean_weights`; `"hardest"`:
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

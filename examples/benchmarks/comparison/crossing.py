"""Synthetic classes: pairs of the batch's classes, crossed channel by channel at the backbone's features."""

import torch
from torch import Tensor


def cross_classes(features: Tensor, labels: Tensor, num_partners: int, first_label: int) -> tuple[Tensor, Tensor]:
    """Cross each class of a batch with `num_partners` others into new classes.

    A pair of classes draws one coin per channel. The m-th samples of both, channel by channel, give the m-th sample of
    the new class: from the one where the coin shows heads, else from the other.

    Args:
        features: (B, F), of any classes.
        labels: (B,) long.
        num_partners: P, new classes for each class; fewer if the batch has no more others.
        first_label: label of the first new class; the others follow.

    Returns:
        `(rows, row_labels)`: (S, F) with gradient, and (S,) long. Both are empty for a batch of one class.
    """
    classes, class_of, sizes = labels.unique(return_inverse=True, return_counts=True)
    count, sizes = len(classes), sizes.tolist()
    by_class = class_of.argsort(stable=True).split(sizes)
    order = torch.randperm(count).tolist()
    heads_rows, tails_rows, pair_of, num_pairs = [], [], [], 0
    for step in range(1, min(num_partners, count - 1) + 1):
        for place in range(count):
            one, other = by_class[order[place]], by_class[order[(place + step) % count]]
            size = min(len(one), len(other))
            heads_rows.append(one[:size])
            tails_rows.append(other[:size])
            pair_of += [num_pairs] * size
            num_pairs += 1
    if num_pairs == 0:
        return features[:0], labels[:0]
    pairs = torch.tensor(pair_of, device=labels.device)
    coins = torch.rand(num_pairs, features.shape[1], device=features.device) < 0.5
    rows = torch.where(coins[pairs], features[torch.cat(heads_rows)], features[torch.cat(tails_rows)])
    return rows, pairs + first_label

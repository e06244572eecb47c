"""Synthetic classes: two classes of a batch, crossed channel by channel into a new class."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn
from torch.func import functional_call

BETA = 0.4
"""Of the distribution that one coefficient for all channels is drawn from."""


class Pairs(NamedTuple):
    """Pairs of classes, and of their samples: the m-th of the one with the m-th of the other.

    Attributes:
        first, second: (S,) long, rows of the batch.
        pair_of: (S,) long, ascending, which of the P pairs of classes each pair of samples belongs to.
        ends: (P, 2) long, the two classes, counted in the order of their labels.
    """

    first: Tensor
    second: Tensor
    pair_of: Tensor
    ends: Tensor


def pair_classes(labels: Tensor, num_partners: int) -> Pairs:
    """Pair each class of a batch with `num_partners` others, drawn at random; fewer if there are no more others.

    Args:
        labels: (B,) long.
        num_partners: pairs for each class. Classes of different size have as many pairs of samples as the smaller.
    """
    classes, class_of, sizes = labels.unique(return_inverse=True, return_counts=True)
    by_class = class_of.argsort(stable=True).split(sizes.tolist())
    order, count = torch.randperm(len(classes)).tolist(), len(classes)
    first, second, pair_of = [labels[:0]], [labels[:0]], list[int]()
    ends: list[tuple[int, int]] = []
    for step in range(1, min(num_partners, count - 1) + 1):
        for place in range(count):
            pair = order[place], order[(place + step) % count]
            size = min(len(by_class[pair[0]]), len(by_class[pair[1]]))
            first.append(by_class[pair[0]][:size])
            second.append(by_class[pair[1]][:size])
            pair_of += [len(ends)] * size
            ends.append(pair)
    return Pairs(
        torch.cat(first),
        torch.cat(second),
        torch.tensor(pair_of, dtype=torch.long, device=labels.device),
        torch.tensor(ends, dtype=torch.long, device=labels.device).view(-1, 2),
    )


def shared_coins(pairs: Pairs, like: Tensor) -> Tensor:
    """Return one coin for each channel and pair of classes, which its samples share: (S, F) bool."""
    return (torch.rand(len(pairs.ends), like.shape[1], device=like.device) < 0.5)[pairs.pair_of]


def own_coins(pairs: Pairs, like: Tensor) -> Tensor:
    """Return one coin for each channel and pair of samples: (S, F) bool."""
    return torch.rand(len(pairs.first), like.shape[1], device=like.device) < 0.5


def scalars(pairs: Pairs, like: Tensor) -> Tensor:
    """Return one coefficient for each pair of classes, the same for all channels: (S, F)."""
    drawn = torch.distributions.Beta(BETA, BETA).sample((len(pairs.ends), 1))
    return drawn.to(like)[pairs.pair_of].expand(-1, like.shape[1])


MASKS: dict[str, Callable[[Pairs, Tensor], Tensor]] = {
    "coin": shared_coins,
    "own_coin": own_coins,
    "scalar": scalars,
    "dropped": shared_coins,
}


def cross(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return `one` where the (S, F) mask is 1 and `other` where it is 0; in between, that share of `one`."""
    return torch.where(mask, one, other) if mask.dtype == torch.bool else torch.lerp(other, one, mask)


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
    pairs = pair_classes(labels, num_partners)
    rows = cross(features[pairs.first], features[pairs.second], shared_coins(pairs, features))
    return rows, pairs.pair_of + first_label


class Crossing:
    """The term of synthetic classes beside a loss.

    Args:
        settings: `crossed`, partners of each class. The others may be absent: `mask`, one of `MASKS`, a coin by
            default; `"dropped"` crosses with zeros instead of another class, and keeps the label. `place`,
            `"features"` by default, or `"embeddings"`. `crossed_weight` w, 1 by default, in the total
            (J + w J') / (1 + w). `proxies` of the new classes, `"averaged"` or `"crossed"` by the same mask.
            `head_counts`: with `"real"`, crossed features leave the running statistics of the head as they are.
        num_classes: training classes N; new classes are labelled from here on.
    """

    def __init__(self, settings: Mapping[str, Any], num_classes: int) -> None:
        self.num_partners, self.num_classes = settings["crossed"], num_classes
        self.mask, self.place = settings.get("mask", "coin"), settings.get("place", "features")
        self.weight, self.proxies = settings.get("crossed_weight", 1.0), settings.get("proxies")
        self.keeps_statistics = settings.get("head_counts") == "real"

    def draw(self, pairs: Pairs, values: Tensor, labels: Tensor) -> Tensor:
        """Return the mask of the crossed rows, (S, F), for a batch of (B, F) values."""
        return MASKS[self.mask](pairs, values)

    def total(
        self, value: Tensor, loss: nn.Module, network: Any, features: Tensor, embeddings: Tensor, labels: Tensor
    ) -> Tensor:
        """Return (J + w J') / (1 + w) of the loss of the batch, J, and with its synthetic classes, J'.

        Args:
            value: J.
            loss: of (B, D) embeddings and their labels.
            network: whose `head` embeds crossed features.
            features: (B, F), what the head took.
            embeddings: (B, D).
            labels: (B,) long.
        """
        pairs = pair_classes(labels, self.num_partners)
        values = features if self.place == "features" else embeddings
        mask, other = self.draw(pairs, values, labels), values[pairs.second]
        dropped = self.mask == "dropped"
        rows = cross(values[pairs.first], torch.zeros_like(other) if dropped else other, mask)
        if self.place == "features":
            with statistics_kept(network.head, self.keeps_statistics):
                rows = network.head(rows)
        new = labels[pairs.first] if dropped else pairs.pair_of + self.num_classes
        rows, row_labels = torch.cat([embeddings, rows]), torch.cat([labels, new])
        if self.proxies is None:
            crossed = loss(rows, row_labels)
        else:
            crossed = with_proxies(loss, self.new_proxies(loss, pairs, mask, labels), rows, row_labels)
        total: Tensor = (value + self.weight * crossed) / (1 + self.weight)
        return total

    def new_proxies(self, loss: Any, pairs: Pairs, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the proxies of the new classes, (P, D)."""
        one, other = loss.proxies[labels.unique()[pairs.ends]].unbind(dim=1)
        if self.proxies == "averaged":
            return (one + other) / 2
        starts = torch.searchsorted(pairs.pair_of, torch.arange(len(pairs.ends), device=mask.device))
        return cross(one, other, mask[starts])


def with_proxies(loss: losses.ProxyAnchorLoss, more: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the Proxy Anchor loss with `more` proxies, (P, D), behind those of the training classes."""
    proxies = torch.cat([loss.proxies, more])
    larger = losses.ProxyAnchorLoss(*proxies.shape, margin=loss.margin, alpha=loss.alpha)
    value: Tensor = functional_call(larger, {"proxies": proxies}, (embeddings, labels))
    return value


@contextmanager
def statistics_kept(head: nn.Module, keep: bool = True) -> Iterator[None]:
    """Let a head's BatchNorm use the statistics of each batch as in training, but not count them, if `keep`."""
    norms = [m for m in head.modules() if keep and isinstance(m, nn.BatchNorm1d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

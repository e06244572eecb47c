"""Synthetic classes and their controls."""

import pytest
import torch
from comparison.crossing import MASKS, Crossing, cross, pair_classes, statistics_kept, with_proxies
from pytorch_metric_learning import losses
from torch import nn

CLASSES, SIZE = 4, 6
LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3])


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Module()
    made.head = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, SIZE))
    return made


def total(settings, network, loss, seed=1):
    """The total of a batch, and its parts: features, embeddings, the pairs that were drawn, and their mask."""
    torch.manual_seed(0)
    features = torch.randn(len(LABELS), 10)
    embeddings = network.head(features)
    crossing = Crossing({"crossed": 2, **settings}, CLASSES)
    torch.manual_seed(seed)
    found = crossing.total(loss(embeddings, LABELS), loss, network, features, embeddings, LABELS)
    torch.manual_seed(seed)
    pairs = pair_classes(LABELS, 2)
    values = features if crossing.place == "features" else embeddings
    return found, features, embeddings, pairs, MASKS[crossing.mask](pairs, values)


def test_pairs_name_their_classes():
    pairs = pair_classes(LABELS, 2)
    names = LABELS.unique()
    assert len(pairs.ends) == 6
    for first, second, pair in zip(pairs.first, pairs.second, pairs.pair_of, strict=True):
        assert [LABELS[first], LABELS[second]] == names[pairs.ends[pair]].tolist()


def test_masks():
    labels = torch.arange(4).repeat_interleave(3)
    pairs, like = pair_classes(labels, 2), torch.zeros(12, 50)
    for name, kind in MASKS.items():
        mask = kind(pairs, like)
        assert mask.shape == (24, 50)
        by_pair = mask.view(8, 3, 50)
        shared = (by_pair == by_pair[:, :1]).all()
        assert shared == (name != "own_coin")
        assert (mask == mask[:, :1]).all() == (name == "scalar")
        assert (mask.dtype == torch.bool) == (name != "scalar")
        if name == "scalar":
            assert ((mask > 0) & (mask < 1)).all()
    assert len(MASKS["scalar"](pairs, like).unique()) == 8


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("mask", ["coin", "scalar", "own_coin"])
@pytest.mark.parametrize("place", ["features", "embeddings"])
def test_the_total_against_a_loop(weight, mask, place, network):
    loss = losses.MultiSimilarityLoss()
    settings = {"mask": mask, "place": place, "crossed_weight": weight}
    found, features, embeddings, pairs, drawn = total(settings, network, loss)
    values = features if place == "features" else embeddings
    rows, drawn = [], drawn.float()
    for m, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        channels = range(values.shape[1])
        rows.append(
            torch.stack([drawn[m, c] * values[first, c] + (1 - drawn[m, c]) * values[second, c] for c in channels])
        )
    rows = torch.stack(rows)
    rows = network.head(rows) if place == "features" else rows
    new = pairs.pair_of + CLASSES
    crossed = loss(torch.cat([embeddings, rows]), torch.cat([LABELS, new]))
    torch.testing.assert_close(found, (loss(embeddings, LABELS) + weight * crossed) / (1 + weight))


def test_dropped_channels_keep_the_class(network):
    loss = losses.MultiSimilarityLoss()
    found, features, embeddings, pairs, drawn = total({"mask": "dropped"}, network, loss)
    rows = network.head(features[pairs.first] * drawn)
    together = loss(torch.cat([embeddings, rows]), torch.cat([LABELS, LABELS[pairs.first]]))
    torch.testing.assert_close(found, (loss(embeddings, LABELS) + together) / 2)


def slow_proxy_anchor(embeddings, labels, proxies, margin=0.1, alpha=32):
    similarity = nn.functional.normalize(embeddings) @ nn.functional.normalize(proxies).t()
    positive = negative = 0
    for p in range(len(proxies)):
        own = [x for x in range(len(labels)) if labels[x] == p]
        others = [x for x in range(len(labels)) if labels[x] != p]
        if own:
            positive = positive + torch.log1p(sum(torch.exp(-alpha * (similarity[x, p] - margin)) for x in own))
        negative = negative + torch.log1p(sum(torch.exp(alpha * (similarity[x, p] + margin)) for x in others))
    return positive / len(set(labels.tolist())) + negative / len(proxies)


@pytest.mark.parametrize(
    ("place", "proxies"), [("features", "averaged"), ("embeddings", "averaged"), ("embeddings", "crossed")]
)
def test_new_classes_have_proxies_made_of_two(place, proxies, network):
    loss = losses.ProxyAnchorLoss(CLASSES, SIZE)
    found, features, embeddings, pairs, drawn = total({"place": place, "proxies": proxies}, network, loss)
    names, more = LABELS.unique(), []
    for pair, (one, other) in enumerate(pairs.ends.tolist()):
        mine, its = loss.proxies[names[one]], loss.proxies[names[other]]
        first_row = pairs.pair_of.tolist().index(pair)
        more.append((mine + its) / 2 if proxies == "averaged" else torch.where(drawn[first_row], mine, its))
    values = features if place == "features" else embeddings
    rows = cross(values[pairs.first], values[pairs.second], drawn)
    rows = network.head(rows) if place == "features" else rows
    everything = torch.cat([embeddings, rows]), torch.cat([LABELS, pairs.pair_of + CLASSES])
    crossed = slow_proxy_anchor(*everything, torch.cat([loss.proxies, torch.stack(more)]))
    torch.testing.assert_close(found, (loss(embeddings, LABELS) + crossed) / 2)
    found.backward()
    assert (loss.proxies.grad.norm(dim=1) > 0).all()


def test_proxies_behind_the_others_change_nothing_without_samples_but_the_negatives():
    torch.manual_seed(0)
    loss, embeddings = losses.ProxyAnchorLoss(CLASSES, SIZE), torch.randn(len(LABELS), SIZE)
    torch.testing.assert_close(with_proxies(loss, torch.zeros(0, SIZE), embeddings, LABELS), loss(embeddings, LABELS))
    more = torch.randn(3, SIZE)
    expected = slow_proxy_anchor(embeddings, LABELS, torch.cat([loss.proxies, more]))
    torch.testing.assert_close(with_proxies(loss, more, embeddings, LABELS), expected)


@pytest.mark.parametrize("counts", [None, "real"])
def test_crossed_features_need_not_count_in_the_statistics(counts, network):
    norm = network.head[0]
    _, features, *_ = total({"head_counts": counts, "mask": "scalar"}, network, losses.MultiSimilarityLoss())
    once = torch.lerp(torch.zeros(10), features.mean(dim=0), 0.1)
    assert torch.allclose(norm.running_mean, once) == (counts == "real")
    assert norm.momentum == 0.1
    with statistics_kept(network.head):
        assert norm.momentum == 0.0
    assert norm.momentum == 0.1

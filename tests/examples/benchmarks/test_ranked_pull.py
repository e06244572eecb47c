"""Negatives that are pulled by rank."""

import pytest
import torch
from comparison.ideas import RankedCoin, RankedConstant, RankedGraph
from comparison.ranked_pull import RANK, least_pull

from pml_gca.correlation.edges import edge_index

CLASSES, SIZE = 5, 8
LABELS = torch.tensor([0, 0, 1, 1, 1, 3, 3, 4])
GRID = 20_001


def cosine(one, other):
    return torch.cosine_similarity(one, other, dim=-1)


def quantile(values, share):
    """Linear between the two nearest of the sorted values."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    embeddings = torch.randn(len(LABELS), SIZE) + 0.7
    return embeddings.requires_grad_(), torch.rand(36, SIZE)


@pytest.mark.parametrize("mask", ["any", "halves", "isotropic"])
def test_negatives_against_a_search(mask, batch):
    z, coefficients = batch
    if mask == "halves":
        coefficients = (coefficients < 0.5).float()
    if mask == "isotropic":
        coefficients = torch.full_like(coefficients, 0.3)
    generator = RankedConstant(CLASSES, SIZE, merging="mean")
    found = generator.generate(generator.batch(z, LABELS), coefficients=coefficients)
    z, index, number, pulled, unreached = z.detach(), edge_index(len(z)), 0, 0, 0
    for i in range(len(z) - 1):  # the last has no positive
        others = [j for j in range(len(z)) if LABELS[j] != LABELS[i]]
        target = quantile([cosine(z[i], z[j]).item() for j in others], RANK)
        for label in sorted({LABELS[j].item() for j in others}):
            members = [j for j in others if LABELS[j] == label]
            real = z[members].mean(dim=0)
            profile = (1 - torch.stack([coefficients[index[i, j]] for j in members])).mean(dim=0)
            profile = profile / profile.mean()
            steps = torch.linspace(0, 1 / profile.max(), GRID)[:, None]
            path = real + steps * profile * (z[i] - real)
            reached = (cosine(z[i], path) >= target).nonzero()[:, 0]
            chosen = reached[0] if len(reached) else -1
            assert (found.anchors[number], found.labels[number]) == (i, label)
            torch.testing.assert_close(found.embeddings[number], path[chosen], atol=1e-3, rtol=0)
            pulled, unreached = pulled + int(chosen != 0), unreached + (len(reached) == 0)
            number += 1
    assert number == len(found)
    assert 0 < pulled < number or mask != "isotropic"
    assert (unreached > 0) == (mask != "isotropic")


def test_a_pull_along_all_channels_reaches_the_rank_exactly():
    torch.manual_seed(0)
    anchors, negatives = torch.randn(50, SIZE), torch.randn(50, SIZE)
    targets = torch.rand(50)
    extent = least_pull(anchors, negatives, torch.ones(50, SIZE), targets)[:, None]
    made = negatives + extent * (anchors - negatives)
    torch.testing.assert_close(cosine(anchors, made), torch.maximum(targets, cosine(anchors, negatives)))


@pytest.mark.parametrize("kind", [RankedGraph, RankedConstant, RankedCoin])
def test_the_loss_level_has_no_influence(kind, batch):
    z, _ = batch
    torch.manual_seed(0)
    generator, made = kind(CLASSES, SIZE), []
    for level in (0.01, 100.0):
        torch.manual_seed(1)
        made.append(generator(z, LABELS, metric_level=level).embeddings)
    torch.testing.assert_close(*made)
    made[0].sum().backward()
    assert (z.grad[:-1].norm(dim=1) > 0).all()


def test_the_objective_trains_the_coefficients_alone(batch):
    z, coefficients = batch
    generator = RankedGraph(CLASSES, SIZE, similarity_weight=1.0, classification_weight=0.0, diversity_weight=0.0)
    coefficients.requires_grad_()
    found = generator.generate(generator.batch(z, LABELS), coefficients=coefficients)
    (gradient,) = torch.autograd.grad(found.objectives["generation_loss"], coefficients, retain_graph=True)
    assert gradient.norm() > 0
    assert torch.autograd.grad(found.objectives["generation_loss"], z, allow_unused=True) == (None,)
    # Scaling 1 - λ by a common factor changes nothing, so the gradient has no part along it.
    along = [(gradient[edge] * (1 - coefficients[edge])).sum() for edge in range(len(gradient))]
    merged_alone = edge_index(len(z))[5, 7]  # class 4 has one sample
    assert gradient[merged_alone].norm() > 0
    assert abs(along[merged_alone]) < 1e-3 * gradient[merged_alone].norm()

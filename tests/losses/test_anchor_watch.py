"""A loss says once if its batches leave most anchors without synthetic negatives."""

import copy
import warnings

import pytest
import torch
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import HardestNegativeGenerator
from pml_gca.losses.anchor_watch import PATIENCE

NO_POSITIVES, ONE_CLASS = torch.arange(6), torch.zeros(6).long()
HALF, GOOD = torch.tensor([0, 0, 0, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 2, 2])


def wrapped(kind=HardestNegativeGenerator):
    return HardNegativeGenerationLoss(losses.MultiSimilarityLoss(), kind(10, 8))


def said(loss, batches):
    """Return the warnings of some training batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for labels in batches:
            loss(torch.randn(6, 8, requires_grad=True), labels).backward()
    return [w for w in caught if "had no synthetic negatives" in str(w.message)]


@pytest.mark.parametrize("kind", [HardestNegativeGenerator, GlobalCorrelationGenerator])
@pytest.mark.parametrize("labels", [NO_POSITIVES, ONE_CLASS])
def test_batches_without_negatives_are_told_once(kind, labels):
    loss = wrapped(kind)
    assert not said(loss, [labels] * (PATIENCE - 1))
    (warning,) = said(loss, [labels] * (PATIENCE + 1))
    assert "In 20 batches in a row most anchors had no synthetic negatives (6 of 6 in the last one)" in str(
        warning.message
    )
    assert "MPerClassSampler(labels, m=3" in str(warning.message)
    assert warning.filename == __file__  # the line that calls the loss


@pytest.mark.parametrize("labels", [HALF, GOOD])
def test_batches_in_which_half_of_the_anchors_have_some_are_not_told(labels):
    assert not said(wrapped(), [labels] * (PATIENCE + 1))


def test_one_good_batch_starts_the_count_again():
    loss = wrapped()
    assert not said(loss, [*[ONE_CLASS] * (PATIENCE - 1), GOOD, *[ONE_CLASS] * (PATIENCE - 1)])
    assert said(copy.deepcopy(loss), [ONE_CLASS])


def test_evaluation_does_not_count():
    loss = wrapped().eval()
    for _ in range(PATIENCE + 1):
        loss(torch.randn(6, 8), ONE_CLASS)
    assert not said(loss.train(), [ONE_CLASS])

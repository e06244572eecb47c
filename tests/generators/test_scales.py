"""Embeddings of any length: what is made in float32, and under autocast, against float64."""

import contextlib
import copy

import pytest
import torch
from helpers.compared import GENERATORS, NUM_CLASSES, SIZE, generate
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss
from pml_gca.generators import (
    ClassifiedGenerator,
    ConstantGenerator,
    HardestNegativeGenerator,
    HardnessAwareGenerator,
    MixupGenerator,
    RandomGenerator,
)
from pml_gca.losses import SyntheticBatch, synthetic_loss

SCALES = [1e-30, 1e-24, 1e-12, 1.0, 1e5, 1e10, 1e14, 1e18, 1e22, 1e30]
LABELS = torch.tensor([3, 7, 3, 0, 11, 3, 7, 0, 3, 7, 11, 0])
COUNT = len(LABELS)


def learned(**kwargs):
    return lambda: GlobalCorrelationGenerator(NUM_CLASSES, SIZE, num_heads=2, dropout=0.0, **kwargs)


EVERY = GENERATORS | {
    "GCA-HNG": learned(),
    "GCA-HNG, hardest": learned(merging="hardest", num_layers=1),
    "real negatives": lambda: ClassifiedGenerator(HardestNegativeGenerator(NUM_CLASSES, SIZE)),
}


def rows(scale, seed=0):
    z = torch.randn(COUNT, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * scale).float()


def draws_for(generator, dtype):
    """What a generator would draw, the same in every dtype."""
    source = torch.Generator().manual_seed(1)
    if isinstance(generator, MixupGenerator):
        count = sum(int((label != LABELS).sum()) for label in LABELS)
        shares = torch.rand(count, generator=source, dtype=torch.float64)
        return {"shares": shares.to(dtype), "steps": torch.zeros(count, dtype=torch.long)}
    drawn = {}
    if isinstance(generator, (GlobalCorrelationGenerator, ConstantGenerator, RandomGenerator)):
        drawn["draws"] = torch.rand(COUNT, COUNT, generator=source, dtype=torch.float64).to(dtype)
    if isinstance(generator, RandomGenerator):
        drawn["coefficients"] = torch.rand(COUNT * (COUNT + 1) // 2, SIZE, generator=source) > 0.5
    return drawn


def outcome(generator, z, scale, dtype, autocast=None):
    """Negatives, the gradient that embeddings get, times their scale, and that of the parameters, over their own."""
    generator = copy.deepcopy(generator).to(dtype)
    z = z.to(dtype).clone().requires_grad_()
    context = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    with context:
        negatives = generate(generator, z, LABELS, COUNT, 3.0, **draws_for(generator, dtype))
        pick = torch.randn(negatives.embeddings.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        total = (negatives.embeddings / scale * pick).sum() + sum(negatives.objectives.values())
    total.backward()
    parameters = [p.grad.flatten() for p in generator.parameters() if p.grad is not None]
    found = [negatives.embeddings.detach() / scale, z.grad * scale, *parameters]
    return [x.double() for x in found], generator.gradient_norm


def far_apart(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def fits(name, scale):
    return name != "hardness-aware, reembedded" or scale <= 1e18


@pytest.mark.parametrize("name", sorted(EVERY))
def test_values_and_gradients_are_those_of_float64_at_every_scale(name):
    torch.manual_seed(0)
    generator = EVERY[name]()
    for scale in (s for s in SCALES if fits(name, s)):
        z = rows(scale)
        found, norm = outcome(generator, z, scale, torch.float32)
        wanted, wide_norm = outcome(generator, z, scale, torch.float64)
        assert far_apart(found[0], wanted[0]) < 1e-6, scale
        assert far_apart(found[1], wanted[1]) < 1e-4, scale
        largest = max([x.norm() for x in wanted[2:]], default=0)
        for ours, theirs in zip(found[2:], wanted[2:], strict=True):
            assert (ours - theirs).norm() <= 1e-3 * largest, scale
        assert norm == pytest.approx(wide_norm, rel=1e-3)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["GCA-HNG", "real negatives", "hardness-aware, reembedded"])
def test_autocast_agrees_with_float64_at_every_scale(name, dtype, bound):
    torch.manual_seed(0)
    generator = EVERY[name]()
    for scale in (s for s in SCALES if fits(name, s)):
        z = rows(scale)
        found, _ = outcome(generator, z, scale, torch.float32, dtype)
        wanted, _ = outcome(generator, z, scale, torch.float64)
        assert far_apart(found[0], wanted[0]) < bound, scale
        assert far_apart(found[1], wanted[1]) < bound, scale


@pytest.mark.parametrize("name", sorted(EVERY))
def test_one_embedding_that_is_far_longer_leaves_the_others_right(name):
    torch.manual_seed(0)
    generator, z = EVERY[name](), rows(1.0)
    z[4] *= 1e17 if "reembedded" in name else 1e25
    apart = LABELS[4] != LABELS
    results = []
    for dtype in (torch.float32, torch.float64):
        made = copy.deepcopy(generator).to(dtype)
        negatives = generate(made, z.to(dtype), LABELS, COUNT, 3.0, **draws_for(made, dtype))
        results.append(negatives.embeddings[apart[negatives.anchors] & (negatives.labels != LABELS[4])].double())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", [None, LpDistance()])
@pytest.mark.parametrize("loss", [losses.NPairsLoss, losses.NCALoss])
def test_the_synthetic_loss_of_long_embeddings_is_that_of_float64(loss, distance):
    loss = loss(distance=distance) if distance else loss()
    for scale in (1.0, 1e14, 1e18, 1e22, 1e30):
        found = []
        for dtype in (torch.float32, torch.float64):
            z = rows(scale).to(dtype).clone().requires_grad_()
            draws = torch.full((12, 12), 0.5)
            negatives = generate(ConstantGenerator(NUM_CLASSES, SIZE), z, LABELS, COUNT, 3.0, draws=draws)
            value = synthetic_loss(loss, SyntheticBatch(z, LABELS, z, LABELS, negatives))
            found.append((value.double(), torch.autograd.grad(value, z)[0].double() * scale))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_running_statistics_of_long_nodes_stay_finite():
    generator = EVERY["real negatives"]()
    generator(rows(1e30).requires_grad_(), LABELS)
    assert generator.propagation.node_norm.num_batches_tracked == 1
    assert all(buffer.isfinite().all() for buffer in generator.buffers())


REFUSED = {
    "GCA-HNG": (1e34, "GCA-HNG", None),
    "constant": (1e34, "constant", None),
    "hardness-aware, whose loss squares": (1e20, "hardness-aware, reembedded", None),
    "float16, whose gradients overflow": (1e7, "GCA-HNG", torch.float16),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_embeddings_that_are_too_long_are_refused_and_change_nothing(case):
    scale, name, autocast = REFUSED[case]
    loss = HardNegativeGenerationLoss(losses.TripletMarginLoss(), EVERY[name]())
    before = copy.deepcopy(loss.state_dict())
    z = rows(1.0) * scale
    context = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    with context, pytest.raises(ValueError, match=r"embeddings must have a norm below .* normalise them"):
        loss(z.requires_grad_(), LABELS)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_long_embeddings_can_be_evaluated_in_float16():
    generator = HardnessAwareGenerator(NUM_CLASSES, SIZE, reembed=True).eval()
    assert generator(rows(1e25), LABELS).embeddings.isfinite().all()
    learned = EVERY["GCA-HNG"]().eval()
    with torch.autocast("cpu", dtype=torch.float16):
        assert learned(rows(1e25), LABELS).embeddings.isfinite().all()

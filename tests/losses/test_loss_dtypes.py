"""Embeddings and labels of any dtype, and autocast, give nearly the value of float32."""

import pytest
import torch
from helpers.multi_similarity_batch import LABELS, NUM_CLASSES, SIZE, make_loss, proxy_anchor
from pytorch_metric_learning import losses

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

WRAPPED = {
    "angular": losses.AngularLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "n-pairs": losses.NPairsLoss,
    "nca": losses.NCALoss,
    "proxy anchor": proxy_anchor,
    "triplet": losses.TripletMarginLoss,
}
TOLERANCES = {torch.float16: 0.02, torch.bfloat16: 0.08, torch.float32: 1e-5, torch.float64: 1e-5}


@pytest.mark.parametrize("wrapped", sorted(WRAPPED))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_embeddings_of_any_dtype(dtype, wrapped, z):
    """Nearly the value of float32, with the same draws."""
    if dtype == torch.bfloat16 and wrapped in ("nca", "triplet"):
        with pytest.raises(RuntimeError, match="BFloat16"):  # not supported by PML's LpDistance on the CPU
            WRAPPED[wrapped]()(z.detach().to(dtype), LABELS)
        return
    values = []
    for kind in (torch.float32, dtype):
        loss = make_loss(WRAPPED[wrapped])
        loss.levels.generator.value.fill_(10.0)
        torch.manual_seed(5)
        leaf = z.detach().to(dtype).to(kind).requires_grad_()
        value = loss(leaf, LABELS)
        value.backward()
        assert leaf.grad.dtype == kind
        assert leaf.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in loss.parameters())
        values.append(value.item())
        assert all(p.dtype == torch.float32 for p in loss.generator.parameters())
    if dtype != torch.float64:  # float64 draws other random numbers
        assert values[1] == pytest.approx(values[0], rel=TOLERANCES[dtype])


@pytest.mark.parametrize("wrapped", sorted(WRAPPED))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, wrapped, z):
    trunk, values = torch.nn.Linear(SIZE, SIZE), []
    for enabled in (False, True):
        loss = make_loss(WRAPPED[wrapped])
        loss.levels.generator.value.fill_(10.0)
        torch.manual_seed(5)
        trunk.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            embeddings = trunk(z)
            assert embeddings.dtype == (dtype if enabled else torch.float32)
            value = loss(embeddings, LABELS)
        value.backward()
        assert trunk.weight.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in loss.parameters())
        assert all(p.dtype == torch.float32 for p in loss.generator.parameters())
        assert all(v.isfinite().all() for v in loss.generator.state_dict().values())
        values.append(value.item())
    assert values[1] == pytest.approx(values[0], rel=0.08)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype, z):
    values = []
    for labels in (LABELS, LABELS.to(dtype)):
        loss = make_loss(lambda: losses.ArcFaceLoss(NUM_CLASSES, SIZE))
        torch.manual_seed(6)
        values.append(loss(z, labels).item())
    assert values[0] == values[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_total_is_float32_for_half_precision(dtype):
    torch.manual_seed(0)
    loss = HardNegativeGenerationLoss(
        losses.MultiSimilarityLoss(), GlobalCorrelationGenerator(9, 8), collect_stats=True
    )
    total = loss(torch.randn(6, 8).to(dtype).requires_grad_(), torch.tensor([0, 0, 4, 4, 7, 7]))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(loss.metric_loss + loss.synthetic_loss + loss.generator_loss, rel=1e-6)

import pytest
import torch
import torch.nn.functional as F

from pml_gca.correlation.objective import classification_loss, frozen_classification_loss


@pytest.mark.parametrize("margin", [0.5, 17.0])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_classification_by_a_frozen_classifier_is_that_of_autograd(dtype, margin):
    """In float16, too, where the small errors of well classified rows would vanish."""
    torch.manual_seed(0)
    weight, bias, labels = 4 * torch.eye(20, 32), 0.01 * torch.randn(20), torch.arange(400) % 20
    rows = (weight[labels] * margin / 16 + 0.01 * torch.randn(400, 32)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = frozen_classification_loss(rows, weight.requires_grad_(), bias, labels)
    expected = classification_loss(F.linear(rows, weight.detach(), bias), labels)
    tolerance = {None: 1e-5, torch.float16: 0.05, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-6)
    actual, wanted = (torch.autograd.grad(value, rows)[0] for value in (loss, expected))
    assert (actual - wanted).norm() <= tolerance * wanted.norm()

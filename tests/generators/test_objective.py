import pytest
import torch
import torch.nn.functional as F

from pml_gca.generators.objective import classification_loss, frozen_classification_loss


@pytest.mark.parametrize("confidence", [0.1, 8.0])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_classification_by_a_frozen_classifier_is_that_of_autograd(dtype, confidence):
    """In float16, too, where the small errors of well classified rows would vanish."""
    torch.manual_seed(0)
    weight, bias, labels = torch.randn(20, 32), torch.randn(20), torch.arange(2000) % 20
    rows = (F.normalize(weight, dim=1)[labels] * confidence + 0.1 * torch.randn(2000, 32)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = frozen_classification_loss(rows, weight.requires_grad_(), bias, labels)
    expected = classification_loss(F.linear(rows, weight.detach(), bias), labels)
    # bfloat16 rounds the larger logits by 0.1, and their errors with them.
    tolerance = {None: 1e-5, torch.float16: 1e-2, torch.bfloat16: 0.25}[dtype]
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-6)
    actual, wanted = (torch.autograd.grad(value, rows)[0] for value in (loss, expected))
    assert (actual - wanted).norm() <= tolerance * wanted.norm()

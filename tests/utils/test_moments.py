"""Mean and deviation in portions."""

import pytest
import torch

from pml_gca.utils import moments


@pytest.mark.parametrize("at_a_time", [1, 7, 12, 1000])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.bool])
def test_portions_give_the_moments_of_all_values(at_a_time, given, monkeypatch):
    monkeypatch.setattr(moments, "VALUES_AT_A_TIME", at_a_time)
    torch.manual_seed(0)
    rows = (
        (torch.rand(11, 3) * torch.arange(1, 12)[:, None] > 1) if given == torch.bool else torch.rand(11, 3).to(given)
    )
    expected = torch.std_mean(rows.double())
    torch.testing.assert_close(moments.std_mean(rows, torch.float64), expected)
    narrow = moments.std_mean(rows, torch.float32)
    torch.testing.assert_close([x.double() for x in narrow], list(expected), rtol=1e-5, atol=1e-6)
    assert all(x.dtype == torch.float32 and x.ndim == 0 for x in narrow)

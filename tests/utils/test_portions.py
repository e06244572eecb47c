import pytest
import torch

from pml_gca.utils.portions import rows_at_a_time


@pytest.mark.parametrize(
    ("width", "device", "rows"),
    [(4, "cpu", 25), (4, "meta", 2**22), (101, "cpu", 1), (2**30, "meta", 1), (0, "cpu", 100)],
)
def test_rows_at_a_time(width, device, rows):
    assert rows_at_a_time(width, torch.device(device), values=100) == rows


def test_another_limit_for_other_devices():
    assert rows_at_a_time(4, torch.device("meta"), values=100, on_gpu=40) == 10

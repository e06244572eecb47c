import pytest
import torch

from pml_gca.datasets import AffineRange
from pml_gca.datasets.affine import draw_affines, warp


class TestAffine:
    def test_no_range_is_the_identity(self) -> None:
        images = torch.rand(3, 1, 9, 9)
        still = draw_affines(3, AffineRange(rotation=0.0, scale=0.0, shear=0.0, shift=0.0))
        assert torch.allclose(warp(images, still), images, atol=1e-5)

    def test_inverse_of_scale_shear_rotation_shift(self) -> None:
        limits = AffineRange(rotation=30.0, scale=0.3, shear=0.4, shift=0.2)
        u = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        got = draw_affines(50, limits, torch.Generator().manual_seed(0)).double()
        for row, affine in zip(u, got, strict=True):
            angle = torch.deg2rad(row[0] * 30)
            rotate = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
            shear = torch.tensor([[1.0, float(row[3]) * 0.4], [0.0, 1.0]], dtype=torch.float64)
            forward = torch.eye(3, dtype=torch.float64)
            forward[:2, :2] = rotate @ shear @ torch.diag(1 + 0.3 * row[1:3])
            forward[:2, 2] = row[4:] * 0.4
            assert torch.allclose(forward.inverse()[:2], affine, atol=1e-5)

    @pytest.mark.parametrize("bad", [{"rotation": -1.0}, {"scale": 1.0}, {"shift": float("nan")}])
    def test_bad_range(self, bad: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=rf"{next(iter(bad))} must lie in"):
            AffineRange(**bad)

"""Random affine distortions of image batches: functions that draw them and functions that apply them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True, kw_only=True)
class AffineRange:
    """Half-widths of the uniform ranges from which an affine distortion is drawn.

    Attributes:
        rotation: largest rotation either way, in degrees (0 to 180).
        scale: largest relative change of size, drawn separately for each axis (0 to 0.95).
        shear: largest horizontal shear, as a slope.
        shift: largest shift along each axis, as a fraction of the image's side (0 to 1).

    Raises:
        TypeError: a half-width is not a number.
        ValueError: a half-width is negative, not finite or too large.
    """

    rotation: float = 45.0
    scale: float = 0.3
    shear: float = 0.4
    shift: float = 0.1

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "scale": 0.95, "shear": 5.0, "shift": 1.0}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{field.name} must be a number, found {type(value).__name__}: {value!r}")
            if not 0.0 <= float(value) <= limits[field.name]:  # also catches NaN
                raise ValueError(f"{field.name} must lie in [0, {limits[field.name]}], found {value!r}")


def check_range(name: str, value: AffineRange | None, default: AffineRange) -> AffineRange:
    """Return `value`, or `default` for None. Raise TypeError for anything else."""
    if not (value is None or isinstance(value, AffineRange)):
        raise TypeError(f"{name} must be an AffineRange or None, found {type(value).__name__}: {value!r}")
    return default if value is None else value


def check_augment(augment: bool | None, split: str) -> bool:
    """Return `augment`, or for None whether `split` is train. Raise TypeError for anything else."""
    if not (augment is None or isinstance(augment, bool)):
        raise TypeError(f"augment must be True, False or None, found {type(augment).__name__}: {augment!r}")
    return split == "train" if augment is None else augment


def draw_affines(count: int, limits: AffineRange, generator: torch.Generator | None = None) -> Tensor:
    """Draw `count` affine maps, shape (count, 2, 3), float32, in `affine_grid`'s coordinates.

    Each map takes a point of the *output* image to the point of the input image that it is read from. Image
    coordinates run from -1 to 1. The forward map is scale, then shear, then rotation, then shift, all about the
    image's centre. `generator` is the random number generator; None means torch's global one.
    """
    # numpy's small operations cost a fraction of torch's, which matters for single images.
    u = torch.rand(count, 6, generator=generator, device="cpu").numpy() * np.float32(2) - np.float32(1)
    angle = u[:, 0] * np.float32(math.radians(limits.rotation))
    scale_x, scale_y = 1 + u[:, 1] * np.float32(limits.scale), 1 + u[:, 2] * np.float32(limits.scale)
    shear = u[:, 3] * np.float32(limits.shear)
    shift = u[:, 4:] * np.float32(2 * limits.shift)  # a side is 2 units long in these coordinates
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty((count, 2, 3), np.float32)
    out[:, 0, 0], out[:, 0, 1] = (cos + shear * sin) / scale_x, (sin - shear * cos) / scale_x
    out[:, 1, 0], out[:, 1, 1] = -sin / scale_y, cos / scale_y
    out[:, :, 2] = -(out[:, :, 0] * shift[:, :1] + out[:, :, 1] * shift[:, 1:])
    return torch.from_numpy(out)


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images of any shape as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def warp(images: Tensor, affines: Tensor, *, padding: str = "zeros") -> Tensor:
    """Apply one affine map to each image, bilinearly.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].
        affines: (N, 2, 3) as from `draw_affines`.
        padding: fill outside the image: `"zeros"`, `"border"` or `"reflection"`.

    Returns:
        (N, C, H, W) float32 in [0, 1].
    """
    pixels = to_unit(images) if images.dtype == torch.uint8 else images
    grid = affine_grid(affines, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def warp_fixed(images: Tensor, limits: AffineRange, seed: int, *, chunk: int = 1024) -> Tensor:
    """Distort every image once, by maps drawn from `seed`. Images are (N, C, H, W) uint8, before and after."""
    affines = draw_affines(len(images), limits, torch.Generator().manual_seed(seed))
    out = torch.empty_like(images)
    for start in range(0, len(images), chunk):  # in chunks: the sampling grid takes 8 bytes per pixel
        part = slice(start, start + chunk)
        out[part] = warp(images[part], affines[part]).mul_(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return out

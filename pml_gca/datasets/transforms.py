"""Transforms of image files for pretrained backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..utils.optional_imports import import_torchvision
from ..utils.validation import check_int
from .rgb import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputConfig:
    """What a backbone was trained to take. `pml_gca.paper.input_config(name)` looks it up.

    Attributes:
        mean, std: of each channel of images in [0, 1]; they become 0 and 1.
        interpolation: `"bilinear"` or another of torchvision's names.
        crop_fraction: share of the shorter side that the centre crop keeps in testing.
        image_size: side of the images, in pixels.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_fraction: float = 7 / 8
    image_size: int = 224


IMAGENET = InputConfig()
"""The input of most models that were trained on ImageNet, and of all of the paper."""


class ToRGB:
    """Convert a PIL image of any mode to upright 8-bit RGB, by `to_rgb`."""

    def __call__(self, image: Any) -> Any:
        return to_rgb(image)

    def __repr__(self) -> str:
        return "ToRGB()"


def train_transform(image_size: int = 224, *, input_config: InputConfig = IMAGENET) -> Callable[[Any], Tensor]:
    """Return the transform for training: random crop, scaled to `image_size`, mirrored half the time, normalized.

    Args:
        image_size: side of the result, in pixels.
        input_config: gives mean, standard deviation and interpolation.

    Returns:
        A function from a PIL image of any size and mode to (3, image_size, image_size) float32.

    Raises:
        ImportError: torchvision is missing or does not match torch.
        TypeError, ValueError: `image_size` is not an int in [8, 1024].
    """
    size = check_int("image_size", image_size, 8, 1024)
    tv = import_torchvision().transforms
    crop = tv.RandomResizedCrop(size, interpolation=tv.InterpolationMode(input_config.interpolation))
    return _compose([crop, tv.RandomHorizontalFlip()], input_config)


def test_transform(
    image_size: int = 224,  # noqa: PT028 - no test of pytest
    *,
    input_config: InputConfig = IMAGENET,  # noqa: PT028
) -> Callable[[Any], Tensor]:
    """Return the transform for testing: shorter side scaled to 8/7 of `image_size` (256 for 224), centre crop.

    Another `input_config` may keep another share than 7/8. Images are normalized. Returns and raises as
    `train_transform` does.
    """
    size = check_int("image_size", image_size, 8, 1024)
    tv = import_torchvision().transforms
    resize = tv.Resize(
        round(size / input_config.crop_fraction), interpolation=tv.InterpolationMode(input_config.interpolation)
    )
    return _compose([resize, tv.CenterCrop(size)], input_config)


test_transform.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it as a test


def _compose(cuts: list[Any], config: InputConfig) -> Callable[[Any], Tensor]:
    tv = import_torchvision().transforms
    steps = [ToRGB(), *cuts, tv.ToTensor(), tv.Normalize(config.mean, config.std)]
    composed: Callable[[Any], Tensor] = tv.Compose(steps)
    return composed

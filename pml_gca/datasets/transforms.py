"""Transforms of image files for backbones that were trained on ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..utils.optional_imports import import_torchvision
from ..utils.validation import check_int
from .rgb import to_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ToRGB:
    """Convert a PIL image of any mode to upright 8-bit RGB, by `to_rgb`."""

    def __call__(self, image: Any) -> Any:
        return to_rgb(image)

    def __repr__(self) -> str:
        return "ToRGB()"


def train_transform(image_size: int = 224) -> Callable[[Any], Tensor]:
    """Return the transform for training: random crop, scaled to `image_size`, mirrored half the time, normalized.

    Returns:
        A function from a PIL image of any size and mode to (3, image_size, image_size) float32.

    Raises:
        ImportError: torchvision is missing or does not match torch.
        TypeError, ValueError: `image_size` is not an int in [8, 1024].
    """
    size = check_int("image_size", image_size, 8, 1024)
    tv = import_torchvision().transforms
    return _compose([tv.RandomResizedCrop(size), tv.RandomHorizontalFlip()])


def test_transform(image_size: int = 224) -> Callable[[Any], Tensor]:  # noqa: PT028
    """Return the transform for testing: shorter side scaled to 8/7 of `image_size` (256 for 224), centre crop.

    Images are normalized. Returns and raises as `train_transform` does.
    """
    size = check_int("image_size", image_size, 8, 1024)
    tv = import_torchvision().transforms
    return _compose([tv.Resize(round(size * 8 / 7)), tv.CenterCrop(size)])


test_transform.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it as a test


def _compose(cuts: list[Any]) -> Callable[[Any], Tensor]:
    tv = import_torchvision().transforms
    steps = [ToRGB(), *cuts, tv.ToTensor(), tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    composed: Callable[[Any], Tensor] = tv.Compose(steps)
    return composed

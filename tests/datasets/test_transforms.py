import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pml_gca.datasets import transforms
from pml_gca.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from pml_gca.utils.optional_imports import import_pillow, import_timm, import_torchvision

MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
BOTH = (transforms.train_transform, transforms.test_transform)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_any_mode_and_size(make: Callable[..., Callable[[Image.Image], torch.Tensor]], mode: str) -> None:
    for width, height in ((50, 70), (20, 9)):
        out = make(32)(noise(width, height).convert(mode))
        assert out.shape == (3, 32, 32)
        assert out.dtype == torch.float32


@pytest.mark.parametrize("wide", ["I;16", "I", "F"])
def test_wide_pictures_equal_their_8_bit_versions(wide: str) -> None:
    grey = np.asarray(noise(40, 50).convert("L"))
    values = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32), "F": grey.astype(np.float32) / 255}
    transform = transforms.test_transform(16)
    assert torch.equal(transform(Image.fromarray(values[wide])), transform(Image.fromarray(grey)))


def test_transparent_and_sideways_pictures() -> None:
    transform = transforms.test_transform(16)
    white = transform(Image.new("L", (20, 20), 255))
    assert torch.equal(transform(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), white)
    upright, sideways = noise(20, 20), noise(20, 20).transpose(Image.Transpose.ROTATE_90)
    sideways.getexif()[0x0112] = 6
    assert torch.equal(transform(sideways), transform(upright))


@pytest.mark.parametrize("make", BOTH)
def test_normalized(make: Callable[..., Callable[[Image.Image], torch.Tensor]]) -> None:
    colour = torch.tensor([30, 120, 250])
    out = make(16)(Image.new("RGB", (40, 30), tuple(colour.tolist())))
    assert torch.allclose(out, (colour[:, None, None] / 255 - MEAN) / STD, atol=1e-6)
    assert out.shape == (3, 16, 16)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (112, 128), (256, 293)])
def test_centre_of_the_scaled_image(size: int, resized: int) -> None:
    image = noise(resized, resized + 40)
    left, top = round((resized - size) / 2), round((resized + 40 - size) / 2)
    expected = pixels(image.crop((left, top, left + size, top + size)))
    assert torch.allclose(transforms.test_transform(size)(image), (expected - MEAN) / STD, atol=1e-6)


def test_defaults_to_224() -> None:
    for make in BOTH:
        assert make()(noise(30, 30)).shape == (3, 224, 224)


def test_augmentation() -> None:
    ramp = Image.linear_gradient("L").rotate(90)  # from one side to the other
    torch.manual_seed(0)
    drawn = [transforms.train_transform(32)(ramp) for _ in range(30)]
    rises = [(image[0, :, -1] - image[0, :, 0]).mean() > 0 for image in drawn]
    assert 3 < sum(rises) < 27
    ranges = {round(float(image.max() - image.min()), 3) for image in drawn}
    assert len(ranges) > 15  # crops of many widths
    plain = transforms.test_transform(32)
    assert torch.equal(plain(ramp), plain(ramp))


@pytest.mark.parametrize("make", BOTH)
def test_picklable(make: Callable[..., Callable[[Image.Image], torch.Tensor]]) -> None:
    transform = make(32)
    again = pickle.loads(pickle.dumps(transform))
    assert repr(again) == repr(transform)
    outputs = []
    for t in (transform, again):
        torch.manual_seed(0)
        outputs.append(t(noise(50, 60)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("make", BOTH)
def test_bad_size(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="image_size must be an int, found float"):
        make(224.0)
    with pytest.raises(ValueError, match=r"image_size must lie in \[8, 1024\], found 0"):
        make(0)


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import torchvision and timm again, and restore the imported modules afterwards."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("torchvision", "timm"):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("forget")
def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, load in (("torchvision", import_torchvision), ("timm", import_timm), ("PIL.Image", import_pillow)):
        monkeypatch.setitem(sys.modules, name, None)  # the import system's sign for a missing module
        with pytest.raises(
            ImportError, match=rf"{name} cannot be imported .*pip install 'pml-gca\[images\]'"
        ) as caught:
            load()
        assert isinstance(caught.value.__cause__, ImportError)
    for make in BOTH:
        with pytest.raises(ImportError, match="torchvision's version must match the installed torch"):
            make(32)


@pytest.mark.usefixtures("forget")
def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"\(RuntimeError: operator nms does not exist\).*must match") as caught:
        transforms.train_transform(32)
    assert torch.__version__ in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_packages_are_returned() -> None:
    assert import_torchvision().__name__ == "torchvision"
    assert import_pillow().__name__ == "PIL.Image"

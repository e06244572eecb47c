import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pml_gca.datasets import Glyphs
from pml_gca.datasets.glyphs import cache as glyph_cache
from pml_gca.datasets.glyphs import dataset
from pml_gca.datasets.glyphs.look_alikes import dilate, group_roots, stray_ink
from pml_gca.datasets.glyphs.render import MIN_FACES, Rendering

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def splits(cache_dir: Path) -> dict[str, Glyphs]:
    return {split: Glyphs(split, cache_dir=cache_dir, progress=False) for split in SPLITS}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Glyphs], cache_dir: Path) -> list[int]:
    """Replace the drawing by stored images of 40 classes, and count the calls."""
    rendering = glyph_cache.load_rendering(glyph_cache.cache_path(cache_dir, 32), 32)
    assert rendering is not None
    few = rendering.labels < 40
    rendering = Rendering(*(a[few] for a in rendering[:3]), rendering.codes[:40])
    calls: list[int] = []

    def draw(image_size: int, progress: object = None) -> Rendering:
        calls.append(image_size)
        return rendering

    monkeypatch.setattr(dataset, "render_glyphs", draw)
    return calls


def test_sizes(splits: dict[str, Glyphs]) -> None:
    classes = [splits[s].num_classes for s in SPLITS]
    images = [len(splits[s]) for s in SPLITS]
    assert 750 <= sum(classes) <= 950
    assert 11_000 <= sum(images) <= 15_000
    assert np.allclose(np.array(classes) / sum(classes), (0.4, 0.1, 0.5), atol=0.01)


def test_splits_share_no_class(splits: dict[str, Glyphs]) -> None:
    names = [name for s in SPLITS for name in splits[s].classes]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_contiguous_and_faces_distinct(splits: dict[str, Glyphs], split: str) -> None:
    data = splits[split]
    assert data.labels.dtype == data.face_index.dtype == torch.int64
    assert len(data) == len(data.images) == len(data.labels) == len(data.face_index)
    counts = data.labels.bincount()
    assert len(counts) == data.num_classes == len(data.classes)
    assert counts.min() >= MIN_FACES
    assert counts.max() <= len(data.faces) == 16
    pairs = data.labels * 16 + data.face_index
    assert len(pairs.unique()) == len(data)


def test_items(splits: dict[str, Glyphs]) -> None:
    for data in splits.values():
        image, label = data[np.int64(5)]  # samplers yield numpy's integers
        assert image.shape == (1, 32, 32)
        assert image.dtype == torch.float32
        assert image.min() >= 0.0
        assert 0.8 < image.max() <= 1.0
        assert type(label) is int
        assert label == data.labels[5]
    with pytest.raises(IndexError):
        splits["test"][len(splits["test"])]


def test_ink_fills_the_frame(splits: dict[str, Glyphs]) -> None:
    images = splits["test"].images
    ink = images > 64
    assert (images.amax((1, 2)) > 100).all()
    extent = torch.stack([ink.any(axis).float().sum(1) for axis in (1, 2)], 1) / 32
    assert extent.amax(1).mean() > 0.83  # the longer side
    assert extent.mean() > 0.65
    border = torch.cat([images[:, :2].flatten(1), images[:, -2:].flatten(1)], 1)
    assert border.max() == 0


def test_no_two_classes_look_the_same(splits: dict[str, Glyphs]) -> None:
    names = [name for s in SPLITS for name in splits[s].classes]
    for alike in ("AΑА", "oOΟо", "-–—", "iі", "sSЅ", "\u03a9\u2126", "YΥ"):
        assert len(set(alike) & set(names)) == 1, alike
    # A check of another kind: the plain difference of the mean glyphs of all classes over the common faces.
    means = []
    for s in SPLITS:
        pixels, labels = splits[s].images.float() / 255, splits[s].labels
        keep = splits[s].face_index < 12
        total = torch.zeros(splits[s].num_classes, 32 * 32)
        total.index_add_(0, labels[keep], pixels[keep].flatten(1))
        means.append(total / labels[keep].bincount(minlength=splits[s].num_classes)[:, None])
    mean = torch.cat(means)
    difference = torch.cdist(mean, mean, p=1) / mean.sum(1)
    difference.fill_diagonal_(1.0)
    worst = int(difference.argmin())
    assert difference.min() > 0.015, (names[worst // len(names)], names[worst % len(names)])


def test_fixed_distortion_follows_the_seed(splits: dict[str, Glyphs], cache_dir: Path) -> None:
    data = splits["test"]
    again = Glyphs("test", cache_dir=cache_dir)
    other = Glyphs("test", seed=1, cache_dir=cache_dir)
    rows = range(0, len(data), 97)
    for row in rows:
        assert torch.equal(data[row][0], again[row][0])
        assert torch.equal(data[row][0], data[row][0])
        assert not torch.equal(data[row][0], other[row][0])
        assert not torch.equal(data[row][0][0], data.images[row].float() / 255)
    assert other.classes == data.classes
    for row, (image, label) in zip(rows, data.__getitems__(list(rows)), strict=True):
        assert torch.equal(image, data[row][0])
        assert label == data[row][1]


def test_augmentation_is_fresh_and_reproducible(splits: dict[str, Glyphs]) -> None:
    data = splits["train"]
    torch.manual_seed(3)
    first, second = data[7][0], data[7][0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, data[7][0])
    torch.manual_seed(4)
    batch = data.__getitems__([7, 7, 7])
    torch.manual_seed(4)
    for (a, label), (b, _) in zip(batch, data.__getitems__([7, 7, 7]), strict=True):
        assert torch.equal(a, b)
        assert label == data.labels[7]
    assert not torch.equal(batch[0][0], batch[1][0])


def test_data_loader(splits: dict[str, Glyphs]) -> None:
    images, labels = next(iter(DataLoader(splits["train"], batch_size=81, shuffle=True)))
    assert images.shape == (81, 1, 32, 32)
    assert labels.shape == (81,)
    # Most ink stays inside: the distorted images are about as bright as the plain ones.
    ratio = images.mean() / (splits["train"].images.float().mean() / 255)
    assert 0.8 < ratio < 1.2


def test_cache_is_used_and_mended(small: list[int], tmp_path: Path) -> None:
    reference = Glyphs("val", cache_dir=tmp_path).images
    (file,) = tmp_path.iterdir()  # one file, and no temporary one
    Glyphs("val", cache_dir=tmp_path)
    assert small == [32]
    whole = file.read_bytes()
    for broken in (b"", b"no archive", whole[: len(whole) // 2]):
        file.write_bytes(broken)
        assert torch.equal(Glyphs("val", cache_dir=tmp_path).images, reference)
        assert file.stat().st_size > len(broken)
    np.savez(str(file), images=np.zeros((3, 16, 16), np.uint8), labels=np.arange(3), faces=np.zeros(3, int))
    Glyphs("val", cache_dir=tmp_path)
    assert small == [32] * 5
    Glyphs("val", cache_dir=tmp_path)
    assert len(small) == 5


def test_cache_names_differ_by_size(tmp_path: Path) -> None:
    assert glyph_cache.cache_path(tmp_path, 32) != glyph_cache.cache_path(tmp_path, 64)


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert glyph_cache.default_cache_dir() == tmp_path / "pml_gca"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert glyph_cache.default_cache_dir() == tmp_path / "home" / ".cache" / "pml_gca"


def test_cache_that_cannot_be_written_warns_once(
    small: list[int], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"could not be saved.*cache_dir="):
        Glyphs("val", cache_dir=tmp_path / "file")
    recwarn.clear()
    assert len(Glyphs("val", cache_dir=tmp_path / "file")) > 0
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "dev"}, ValueError, r"split must be one of .*'train'.*found 'dev'"),
        ({"image_size": 4}, ValueError, r"image_size must lie in \[8, 128\], found 4"),
        ({"image_size": 32.0}, TypeError, "image_size must be an int, found float"),
        ({"seed": -1}, ValueError, "seed must lie in .* found -1"),
        ({"augment": 1}, TypeError, "augment must be True, False or None, found int"),
        ({"distortion": 0.1}, TypeError, "distortion must be an AffineRange or None, found float"),
        ({"cache_dir": 3}, TypeError, "cache_dir must be a path or None, found int"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Glyphs(**arguments)  # type: ignore[arg-type]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib is missing.*pip install 'pml-gca\[examples\]'"):
        Glyphs(cache_dir=tmp_path)


def test_other_sizes_have_the_same_classes(
    splits: dict[str, Glyphs], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pml_gca.datasets.glyphs import render as glyph_render

    few = [glyph_render.font_paths()[i] for i in (0, 5)]
    monkeypatch.setattr(glyph_render, "font_paths", lambda: few)
    monkeypatch.setattr(glyph_render, "MIN_FACES", 2)
    monkeypatch.setattr(glyph_render, "covered_codes", lambda _: ([65, 66, 111, 0x391], [{65, 66, 111, 0x391}] * 2))
    large, tiny = glyph_render.render_glyphs(48), glyph_render.render_glyphs(8)
    assert large.images.shape == (6, 48, 48)
    assert tiny.images.shape == (6, 8, 8)
    assert large.codes.tolist() == tiny.codes.tolist() == [65, 66, 111]  # Alpha went, its A stayed
    assert large.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_look_alike_parts() -> None:
    shapes = np.zeros((3, 8, 8), bool)
    shapes[0, 2:4, 2:4] = shapes[1, 3:5, 2:4] = shapes[2, 6:, 6:] = True
    assert dilate(shapes, 1)[0].sum() == 16
    stray = stray_ink(shapes, 1)
    assert np.allclose(stray, stray.T)
    assert stray[0, 1] == 0.0  # one pixel apart
    assert stray[0, 2] == 1.0
    alike = np.zeros((5, 5), bool)
    alike[0, 3] = alike[3, 4] = True
    assert group_roots(alike) == [0, 1, 2, 0, 0]

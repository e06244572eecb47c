from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pml_gca.datasets import AffineRange, ClassFolder
from pml_gca.datasets.splits import split_classes, split_sizes

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (20 + 4 * i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.{'jpg' if i else 'PNG'}")
    (folder / "class0" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    return folder


def make(folder: Path, classes: int, images: int = 2) -> Path:
    for c in range(classes):
        (folder / f"c{c}").mkdir(parents=True)
        for i in range(images):
            Image.new("L", (9, 9), 20 * c).save(folder / f"c{c}" / f"{i}.png")
    return folder


def test_splits(root: Path) -> None:
    data = {s: ClassFolder(root, s, image_size=16) for s in SPLITS}
    assert [data[s].num_classes for s in SPLITS] == [4, 1, 5]
    assert sorted(name for d in data.values() for name in d.classes) == [f"class{c}" for c in range(10)]
    for d in data.values():
        assert len(d) == 3 * d.num_classes
        assert d.labels.tolist() == [k for k in range(d.num_classes) for _ in range(3)]
        assert [path.parent.name for path in d.files] == [d.classes[k] for k in d.labels]


def test_split_follows_the_seed(root: Path) -> None:
    first, again, other = (ClassFolder(root, "test", seed=s).classes for s in (0, 0, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("in_memory", [True, False])
def test_items(root: Path, in_memory: bool) -> None:
    data = ClassFolder(root, "test", image_size=16, in_memory=in_memory)
    image, label = data[np.int64(4)]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    assert 0.0 <= image.min() < image.max() <= 1.0
    assert type(label) is int
    assert label == data.labels[4]
    assert torch.equal(image, data[4][0])
    assert torch.equal(image, data.__getitems__([0, 4])[1][0])
    images, labels = next(iter(DataLoader(data, batch_size=5)))
    assert images.shape == (5, 3, 16, 16)
    assert labels.tolist() == data.labels[:5].tolist()


def test_pixels_equal_those_of_the_file(tmp_path: Path) -> None:
    make(tmp_path, 5)
    plain = ClassFolder(tmp_path, "train", image_size=8, augment=False)
    for i in range(len(plain)):
        image, label = plain[i]
        assert torch.allclose(image, torch.tensor(20 * int(plain.classes[label][1:]) / 255))


def test_augmentation(root: Path) -> None:
    data = ClassFolder(root, "train", image_size=16)
    torch.manual_seed(0)
    first, second = data[0][0], data[0][0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, data[0][0])


def test_flip(root: Path) -> None:
    still = AffineRange(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
    plain = ClassFolder(root, "train", image_size=16, augment=False)[0][0]
    data = ClassFolder(root, "train", image_size=16, distortion=still)
    drawn = [image for image, _ in data.__getitems__([0] * 40)]
    same = [torch.allclose(image, plain, atol=1e-4) for image in drawn]
    mirrored = [torch.allclose(image, plain.flip(2), atol=1e-4) for image in drawn]
    assert any(same)
    assert any(mirrored)
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    unflipped = ClassFolder(root, "train", image_size=16, distortion=still, flip=False)
    assert all(torch.allclose(image, plain, atol=1e-4) for image, _ in unflipped.__getitems__([0] * 20))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found nothing at .*gone; expected <root>/<class>/<image>"):
        ClassFolder(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="found a file"):
        ClassFolder(tmp_path / "file")
    (tmp_path / "flat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match="holds no class folder, only 1 other entry;"):
        ClassFolder(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"one holds 1 class folder \(c0\): .*at least 5 are needed"):
        ClassFolder(make(tmp_path / "one", 1))
    make(tmp_path / "gap", 5)
    (tmp_path / "gap" / "void").mkdir()
    with pytest.raises(ValueError, match=r"1 class folder of .*gap holds no image: void; .* give unreadable=.skip"):
        ClassFolder(tmp_path / "gap")


def test_unreadable_images_are_counted_and_named(tmp_path: Path) -> None:
    make(tmp_path, 5)
    (tmp_path / "c1" / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "c3" / "empty.jpg").write_bytes(b"")
    for split in SPLITS:
        with pytest.raises(ValueError, match=r"2 of 12 images in .* cannot be read: c1.bad\.png, c3.empty\.jpg"):
            ClassFolder(tmp_path, split)


def test_image_cut_short(tmp_path: Path) -> None:
    make(tmp_path, 5)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for c in range(5):
        file = tmp_path / f"c{c}" / "cut.jpg"
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:-2000])  # passes Pillow's verify, fails when decoded
    for in_memory in (True, False):
        with pytest.raises(ValueError, match=r"5 of 15 images .* cannot be read: .*cut\.jpg.*OSError.*truncated"):
            ClassFolder(tmp_path, "train", in_memory=in_memory)


def test_image_lost_after_the_check(tmp_path: Path) -> None:
    late = ClassFolder(make(tmp_path, 5), "train", in_memory=False)
    late.files[2].write_bytes(late.files[2].read_bytes()[:-20])
    assert late[1][1] == 0
    with pytest.raises(ValueError, match=r"1 of 1 image in .* cannot be read: .*png"):
        late[2]


def test_images_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 5)
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    for split in SPLITS:
        ClassFolder(tmp_path, split, in_memory=False)
    assert len(opened) == len(set(opened)) == 10
    changed = tmp_path / "c3" / "1.png"
    changed.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"1 of 10 images .* cannot be read: c3.1\.png"):
        ClassFolder(tmp_path, "val", in_memory=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "all"}, ValueError, "split must be one of"),
        ({"image_size": 0}, ValueError, r"image_size must lie in \[8, 1024\], found 0"),
        ({"fractions": (0.5, 0.5)}, ValueError, "fractions must be three numbers"),
        ({"fractions": (0.5, 0.4, 0.3)}, ValueError, r"sum to 1.*found \(0.5, 0.4, 0.3\)"),
        ({"split": "val", "fractions": (0.5, 0.0, 0.5)}, ValueError, "split 'val' is empty"),
        ({"augment": "yes"}, TypeError, "augment must be"),
    ],
)
def test_bad_arguments(root: Path, arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClassFolder(root, **arguments)  # type: ignore[arg-type]


def test_root_must_be_a_path() -> None:
    with pytest.raises(TypeError, match="root must be a path, found int"):
        ClassFolder(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", range(5, 40))
@pytest.mark.parametrize("fractions", [(0.4, 0.1, 0.5), (0.9, 0.05, 0.05), (0.05, 0.9, 0.05)])
def test_split_sizes(count: int, fractions: tuple[float, float, float]) -> None:
    train, val, test = split_sizes(count, fractions)
    assert train + val + test == count
    assert train >= 2
    assert val >= 1
    assert test >= 2


def test_split_sizes_without_val() -> None:
    assert split_sizes(4, (0.5, 0.0, 0.5)) == (2, 0, 2)
    with pytest.raises(ValueError, match="3 classes cannot be split; at least 4"):
        split_sizes(3, (0.5, 0.0, 0.5))


def test_split_order_is_pinned() -> None:
    assert [split_classes(list("abcdefghij"), s) for s in SPLITS] == [[3, 5, 6, 7], [9], [0, 1, 2, 4, 8]]

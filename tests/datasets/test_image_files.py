import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import write_folder
from helpers.picture_files import exif, jpeg
from PIL import Image

from pml_gca.datasets import ClassFolder, load_benchmark
from pml_gca.datasets.image_files import find_images, image_endings

PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
)  # as small as an icon can be
ENDINGS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "JPG", "Jpeg"),
    "PNG": ("png", "apng", "PNG"),
    "WEBP": ("webp", "WebP"),
    "AVIF": ("avif", "AVIF"),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
    "PPM": ("ppm", "pnm"),
    "JPEG2000": ("jp2", "j2k"),
    "TGA": ("tga",),
    "MPO": ("mpo",),
    "QOI": ("qoi",),
    "ICO": ("ico",),
    "PCX": ("pcx",),
    "SGI": ("sgi", "rgb"),
}


def add(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(path, format=kind)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in range(5):
        add(tmp_path / "data" / f"c{label}" / "a.png")
    return tmp_path / "data"


def told(root: Path) -> list[str]:
    """Warnings while all splits are made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = [ClassFolder(root, split, image_size=8) for split in ("train", "val", "test")]
    assert sum(map(len, data)) == sum(len(files) for files in find_images(root)[0].values())
    assert all(part.left_out == data[0].left_out for part in data)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_every_file_ending_that_pillow_reads(root: Path) -> None:
    added = [add(root / "c0" / f"b{i}.{e}", kind) for kind, ends in ENDINGS.items() for i, e in enumerate(ends)]
    found, left_out = find_images(root)
    assert set(found["c0"]) == {root / "c0" / "a.png", *added}
    assert found["c0"] == sorted(found["c0"])
    assert left_out == {}
    assert told(root) == []


def test_endings_follow_pillow(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    assert not {".pdf", ".txt", ".mpg", ".h5", ".eps", ".wmf", ""} & image_endings()
    (root / "c0" / "a.new").write_bytes((root / "c0" / "a.png").read_bytes())
    assert find_images(root)[1] == {root / "c0" / "a.new": "not named as an image that Pillow reads"}
    monkeypatch.setitem(Image.EXTENSION, ".new", "PNG")  # as a plugin would register it
    assert find_images(root)[1] == {}


def test_folders_in_a_class_folder(root: Path) -> None:
    deep = [add(root / "c1" / name) for name in ("left/b.png", "left/more/b.png", "0.png/b.png")]
    os.symlink(add(root.parent / "elsewhere" / "linked.png").parent, root / "c1" / "link", target_is_directory=True)
    os.symlink(root / "c1", root / "c1" / "left" / "circle", target_is_directory=True)
    os.symlink(root, root / "c1" / "up", target_is_directory=True)
    found, left_out = find_images(root)
    assert set(found["c1"]) == {root / "c1" / "a.png", *deep, root / "c1" / "link" / "linked.png"}
    assert left_out == dict.fromkeys(
        (root / "c1" / "left" / "circle", root / "c1" / "up"), "link to a folder that it lies in"
    )
    data = {split: ClassFolder(root, split, image_size=8) for split in ("train", "test")}
    assert sum(part.classes[label] == "c1" for part in data.values() for label in part.labels) in (0, 5)


def test_names_without_an_ending(root: Path) -> None:
    add(root / "c2" / "0001")
    (root / "c2" / "README").write_text("no image")
    (root / "c2" / "empty").touch()
    found, left_out = find_images(root)
    assert found["c2"] == [root / "c2" / "0001", root / "c2" / "a.png"]
    assert sorted(path.name for path in left_out) == ["README", "empty"]


def test_files_left_out_are_counted_and_named_once(root: Path) -> None:
    for name in ("c0/notes.txt", "c0/clip.mpg", "c3/deep/a.png.bak", "c3/a.pdf"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((root / "c0" / "a.png").read_bytes())
    for name in ("c1/._a.png", "c1/.thumbs/a.png", ".trash/a.png", ".b.jpg"):
        add(root / name)
    for name in ("c4/gone.jpg", "c5"):
        os.symlink(root / "nowhere", root / name)
    os.mkfifo(root / "c4" / "pipe.png")
    add(root / "loose.png")
    for name in ("c1/.DS_Store", "README.md"):  # nobody expects an image there
        (root / name).write_text("")
    (message,) = told(root)
    for part in (
        f"12 files are left out of {root}: ",
        "hidden (4): .b.jpg, .trash/a.png, c1/._a.png, c1/.thumbs/a.png",
        "not named as an image that Pillow reads (4): c0/clip.mpg, c0/notes.txt, c3/a.pdf, c3/deep/a.png.bak",
        "broken link (2): c4/gone.jpg, c5",
        "neither file nor folder (1): c4/pipe.png",
        "outside of the class folders (1): loose.png",
    ):
        assert part in message
    assert message.count("gone.jpg") == 1
    assert told(root) == []  # was told
    (root / "c0" / "more.txt").touch()
    assert len(told(root)) == 1


def test_classes_without_images_are_refused_with_their_content(root: Path) -> None:
    (root / "c6").mkdir()
    (root / "c6" / "photo.heic").touch()
    os.symlink("nowhere", root / "c6" / "b.png")
    with pytest.raises(
        ValueError, match=r"1 class folder of .* holds no image: c6 \(.*photo\.heic.*broken link \(1\): c6"
    ):
        find_images(root)


def test_folder_benchmarks_warn_too(tmp_path: Path) -> None:
    write_folder(tmp_path)
    add(tmp_path / "class 3" / "more" / "b.jfif", "JPEG")
    (tmp_path / "class 3" / "notes.txt").touch()
    with pytest.warns(
        UserWarning, match=r"^1 file is left out of .*: not named .* \(1\): class 3.notes\.txt$"
    ) as caught:
        benchmark = load_benchmark("folder", tmp_path, train_transform=len, test_transform=len)
    assert [warning.filename for warning in caught] == [__file__]
    assert benchmark.val is not None
    assert sum(map(len, (benchmark.train, benchmark.val, benchmark.test["test"]))) == 12 * 4 + 1


def test_images_cut_short_are_found_before_training(root: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ENDINGS:
        file = root / "c0" / f"cut.{ENDINGS[kind][0]}"
        noise.save(file, format=kind)
        file.write_bytes(file.read_bytes()[:-300])
    for in_memory in (False, True):
        for split in ("train", "val", "test"):
            with pytest.raises(ValueError, match=rf"^{len(ENDINGS)} of {5 + len(ENDINGS)} images in "):
                ClassFolder(root, split, image_size=8, in_memory=in_memory)


def test_too_many_pixels_are_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(root / "c0" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    message = (
        r"cannot be read: c0.large\.png \(1 for DecompressionBombError.*10000 pixels.*raise PIL\.Image\.MAX_IMAGE_PIX"
    )
    with pytest.raises(ValueError, match=message) as caught:
        ClassFolder(root)
    assert "repair" not in str(caught.value)
    for label in range(5, 8):
        add(root / f"c{label}" / "a.png")
    data = load_benchmark("folder", root, val_fraction=0, train_transform=str, test_transform=str)
    with pytest.raises(ValueError, match=r"DecompressionBombError.*raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        _ = [part[i] for part in (data.train, data.test["test"]) for i in range(len(part))]


def test_each_reason_is_given(root: Path) -> None:
    (root / "c0" / "bad.png").write_text("no image")
    Image.fromarray(np.array([[1, 70000]], np.int32)).save(root / "c1" / "wide.tif")
    message = (
        r"2 of 7 images .* cannot be read: c0.bad\.png, c1.wide\.tif \(1 for UnidentifiedImageError, such as: .*"
        r"1 for UnknownRangeError, such as: .*c1.wide\.tif holds 32-bit integers, 1 to 70000.*repair it; save it "
    )
    with pytest.raises(ValueError, match=message):
        ClassFolder(root)


def test_odd_metadata_and_wide_pictures_are_read(root: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    stored = grey.repeat(3, 1)
    for label in range(5):
        folder = root / f"c{label}"
        (folder / "a.png").unlink()
        Image.fromarray(grey).save(folder / "0.png")
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "1.tif")
        Image.fromarray(grey.astype(np.float32) / 255).save(folder / "2.tif")
        odd = exif([(0x0112, 3, 1, b"\0\6\0\0"), (0x0128, 2, 2, b"2\0\0\0")])
        (folder / "3.jpg").write_bytes(jpeg(Image.fromarray(stored), odd))
    for in_memory in (True, False):
        data = ClassFolder(root, "test", image_size=8, augment=False, in_memory=in_memory)
        eight, sixteen, floats, turned = (data[i][0] for i in range(4))
        assert (255 * eight.numpy() - grey).round().any() == 0
        assert (eight == sixteen).all()
        assert (eight == floats).all()
        assert np.abs(255 * turned[0].numpy() - np.rot90(stored, -1)[8:16]).max() < 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in range(5, 8):
            add(root / f"c{label}" / "a.png")
        assert load_benchmark("folder", root, unreadable="skip", val_fraction=0, image_size=16).left_out == []

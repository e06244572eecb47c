import os
import shutil
from pathlib import Path

import pytest
from helpers.layouts import WRITERS, load, splits_of, write_cub

from pml_gca.datasets import UnreadableImageError
from pml_gca.datasets.data_root import missing_images


@pytest.mark.parametrize("name", WRITERS)
def test_roots_that_are_no_folder(roots: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"root must be .*[,;] found nothing at {tmp_path}/gone; .*expected"):
        load(name, tmp_path / "gone")
    file = tmp_path / "file"
    file.write_text("")
    for download in (False, True):
        message = "download" if download and name in ("inshop", "folder") else rf"root must be .*found a file at {file}"
        with pytest.raises(ValueError, match=message):
            load(name, file, download=download)
    assert list(tmp_path.iterdir()) == [file]


def test_one_level_off(roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, inner in (
        ("cub", "CUB_200_2011"),
        ("cub", "CUB_200_2011/images"),
        ("cars196", "car_data"),
        ("cars196", "car_data/car_data"),
        ("sop", "Stanford_Online_Products"),
        ("inshop", "Img"),
    ):
        with pytest.raises(ValueError, match=rf"\(did you mean {roots[name]}\?\)"):
            load(name, roots[name] / inner)
    for name in ("cub", "cars196", "sop", "inshop"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).symlink_to(roots[name])
        with pytest.raises(ValueError, match=rf"\(did you mean {tmp_path}/{name}/{name}\?\)"):
            load(name, tmp_path / name)
    monkeypatch.chdir(roots["cub"] / "CUB_200_2011")
    with pytest.raises(ValueError, match=rf"mean {roots['cub']}\?"):
        load("cub", Path())
    with pytest.raises(ValueError, match=r"is missing in [^(]*; expected"):
        load("cub", roots["cars196"])


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "inshop"])
def test_missing_images(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 4, 2, 8)
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".JPG"))
    gone = [*files[:2], files[-1]]
    for file in gone:
        file.unlink()
    with pytest.raises(ValueError, match=f"^3 of the 16 images of {name} are not in {tmp_path}: ") as caught:
        load(name, tmp_path)
    assert all(str(file) in str(caught.value) for file in gone)
    for file in files[2:-1]:
        file.unlink()
    shutil.rmtree(files[0].parent)
    with pytest.raises(ValueError, match=r"^16 of the 16 images .* and 11 more; expected"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["cub", "cars196", "sop", "inshop"])
def test_only_test_images_are_looked_for(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path, 6, 2)
    whole = splits_of(load(name, tmp_path))
    for split in ("train", "val"):
        for file in whole[split].files:
            os.truncate(file, 300)
        os.remove(whole[split].files[0])
    with pytest.raises(ValueError, match=f"^2 of the 24 images of {name} are not in"):
        load(name, tmp_path)
    for unreadable in ("stop", "skip"):
        benchmark = load(name, tmp_path, unreadable=unreadable, check_train=False)
        assert benchmark.left_out == []
        for split, dataset in splits_of(benchmark).items():
            assert dataset.files == whole[split].files
            assert dataset.labels.tolist() == whole[split].labels.tolist()
        with pytest.raises(UnreadableImageError, match="No such file"):
            benchmark.train[0]
    gone, *test = (file for part in benchmark.test.values() for file in part.files)
    os.truncate(test[-1], 300)
    with pytest.warns(UserWarning, match=f"^1 of 12 images of {name} cannot be read and is left out: {test[-1]}"):
        assert load(name, tmp_path, unreadable="skip", check_train=False).left_out == [test[-1]]
    os.remove(gone)
    with pytest.raises(ValueError, match=f"^1 of the 12 images of {name} are not in {tmp_path}: {gone}"):
        load(name, tmp_path, check_train=False)


def test_looking_for_images_lists_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for i in range(50):
            (tmp_path / folder / f"{i}.jpg").touch()
    paths = [str(tmp_path / folder / f"{i}.jpg") for i in range(51) for folder in "abc"]
    listed, real = [], os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: listed.append(path) or real(path))
        patch.setattr(os, "stat", None)
        missing = missing_images(paths)
    assert missing == [p for p in paths if Path(p).parent.name == "c" or p.endswith("50.jpg")]
    assert sorted(listed) == [str(tmp_path / folder) for folder in "abc"]


def test_broken_links_count_as_missing(tmp_path: Path) -> None:
    write_cub(tmp_path, 4, 1, 8)
    broken, circle, folder, good = sorted((tmp_path / "CUB_200_2011" / "images").rglob("*.jpg"))[:4]
    for file, target in ((broken, "nowhere"), (circle, circle.name), (good, None)):
        content = file.read_bytes()
        file.unlink()
        if target is None:
            (tmp_path / "kept.jpg").write_bytes(content)
        os.symlink(target or tmp_path / "kept.jpg", file)
    folder.unlink()
    folder.mkdir()
    with pytest.raises(ValueError, match=r"^3 of the 8 images of cub are not in") as caught:
        load("cub", tmp_path)
    assert all(str(file) in str(caught.value) for file in (broken, circle, folder))

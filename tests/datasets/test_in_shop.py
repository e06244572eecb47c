import shutil
from pathlib import Path

import pytest
from helpers.layouts import write_inshop

from pml_gca.datasets import InShop

NESTED = "In-shop Clothes Retrieval Benchmark"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inshop(tmp_path_factory.mktemp("inshop"), classes=3, per_class=4, size=8)


@pytest.fixture
def partition(tmp_path: Path) -> Path:
    """The partition file of a small data set, which a test may damage."""
    write_inshop(tmp_path, classes=2, per_class=2, size=8, partition_in="", images_in="")
    return tmp_path / "list_eval_partition.txt"


def files(data: InShop) -> list[str]:
    return ["/".join(Path(path).parts[-2:]) for path in data.paths]


def test_splits(root: Path) -> None:
    train, query, gallery = (InShop(root, split) for split in ("train", "query", "gallery"))
    assert train.labels == [1] * 4 + [3] * 4 + [5] * 4
    assert query.labels == gallery.labels == [2, 2, 4, 4, 6, 6]
    assert files(query)[:3] == [f"id_0000000{i}/{n}_1_front.jpg" for i, n in ((2, "01"), (2, "02"), (4, "01"))]
    assert files(gallery)[:3] == [f"id_0000000{i}/{n}_1_front.jpg" for i, n in ((2, "03"), (2, "04"), (4, "03"))]
    test, both = InShop(root, "test"), InShop(root, "train+test")
    assert test.paths == query.paths + gallery.paths
    assert test.labels == query.labels + gallery.labels
    assert both.paths == train.paths + test.paths
    assert InShop(root).paths == both.paths
    assert both.labels == train.labels + test.labels
    assert isinstance(both.paths, list)
    assert all(Path(path).is_file() for path in both.paths)


def test_items_are_as_in_pml(root: Path) -> None:
    data = InShop(str(root), "query", transform=lambda image: image.size, target_transform=lambda label: -label)
    assert len(data) == 6
    assert data[2] == ((8, 8), -4)
    assert data.get_available_splits() == ["train", "query", "gallery", "test", "train+test"]


@pytest.mark.parametrize("nested", ["", NESTED])
@pytest.mark.parametrize("partition_in", ["", "Eval"])
@pytest.mark.parametrize("images_in", ["", "Img"])
def test_layouts(tmp_path: Path, nested: str, partition_in: str, images_in: str) -> None:
    write_inshop(tmp_path / nested, 1, 2, 8, partition_in=partition_in, images_in=images_in)
    data = InShop(tmp_path)
    assert len(data) == 4
    assert all(Path(path).is_file() for path in data.paths)


def test_files_in_separate_folders(tmp_path: Path) -> None:
    write_inshop(tmp_path / NESTED, 1, 2, 8)
    shutil.move(tmp_path / NESTED / "Eval" / "list_eval_partition.txt", tmp_path)
    assert all(Path(path).is_file() for path in InShop(tmp_path).paths)


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_error_says_what_to_get_and_creates_nothing(tmp_path: Path, download: bool, exists: bool) -> None:
    folder = tmp_path / "data"
    if exists:
        folder.mkdir()
    with pytest.raises(ValueError, match="cannot be downloaded automatically") as caught:
        InShop(folder, "train", download=download)
    for part in (
        "In-shop Clothes Retrieval Benchmark",
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        "img.zip",
        str(folder / "list_eval_partition.txt"),
        str(folder / "Img" / "img"),
    ):
        assert part in str(caught.value)
    assert (f"found nothing at {folder}" in str(caught.value)) == (not exists and not download)
    assert list(tmp_path.rglob("*")) == ([folder] if exists else [])


def test_wrong_roots(root: Path, tmp_path: Path, partition: Path) -> None:
    with pytest.raises(TypeError, match="root must be a path, found int: 3"):
        InShop(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found a file at"):
        InShop(partition)
    for inner in ("Img", "Eval"):
        with pytest.raises(ValueError, match=rf"missing in .*{inner} \(did you mean {root}\?\)"):
            InShop(root / inner)
    with pytest.raises(ValueError, match=rf"did you mean {root}\?"):
        InShop(root / "Img" / "img")
    shutil.rmtree(tmp_path / "img")
    with pytest.raises(ValueError, match=r"the images \(folder img\) are missing in "):
        InShop(tmp_path)
    (tmp_path / "outer").mkdir()
    shutil.copytree(root, tmp_path / "outer" / "inner")
    with pytest.raises(ValueError, match=rf"did you mean {tmp_path}/outer/inner\?"):
        InShop(tmp_path / "outer")


def test_wrong_split(root: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'query', .*found 'val'"):
        InShop(root, "val")


@pytest.mark.parametrize(
    ("number", "line", "expected"),
    [
        (1, "image_name item_id evaluation_status", "the number of images"),
        (1, "-8", "the number of images"),
        (2, "img/a.jpg id_00000001 train", "the header 'image_name item_id evaluation_status'"),
        (4, "img/a.jpg id_00000001", "'<image name> id_<number> <train, query or gallery>'"),
        (5, "img/a.jpg id_00000001 train 1", "'<image name> id_"),
        (6, "img/a.jpg 00000001 train", "'<image name> id_"),
        (7, "img/a.jpg id_x1 train", "'<image name> id_"),
        (10, "img/a.jpg id_00000001 val", "'<image name> id_"),
    ],
)
def test_malformed_lines(partition: Path, number: int, line: str, expected: str) -> None:
    lines = partition.read_text().splitlines()
    lines[number - 1] = line
    partition.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"found .*, expected") as caught:
        InShop(partition.parent)
    assert f"{partition}, line {number}: found {line!r}, expected {expected}" in str(caught.value)


@pytest.mark.parametrize("name", ["/img/a.jpg", "img/../../a.jpg", "../img/a.jpg", "C:/img/a.jpg", "img\\a.jpg"])
def test_images_from_elsewhere_are_refused(partition: Path, name: str) -> None:
    lines = partition.read_text().splitlines()
    lines[4] = f"{name} id_00000001 train"
    partition.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 5: found .*, expected an image name from the folder img on, such as"):
        InShop(partition.parent)


@pytest.mark.parametrize("status", ["train", "query", "gallery"])
@pytest.mark.parametrize("name", ["{}", "img/./{}"])
def test_an_image_listed_twice_is_refused(partition: Path, status: str, name: str) -> None:
    lines = partition.read_text().splitlines()
    again = name.format(lines[2].split()[0].removeprefix("img/" if name != "{}" else ""))
    lines[7] = f"{again} id_00000009 {status}"
    partition.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 8: found .*, expected each image once, but it is in line 3, too"):
        InShop(partition.parent)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "\n\n \n"])
def test_partition_files_of_other_editors(partition: Path, encoding: str, ending: str) -> None:
    expected = InShop(partition.parent)
    head, header, *rows = partition.read_text().splitlines()
    text = "\n".join([head, header, ""]) + "".join(f"{row}{ending}" for row in rows)
    partition.write_bytes((text.replace("\n", ending) if ending.startswith("\r") else text).encode(encoding))
    found = InShop(partition.parent)
    assert (found.paths, found.labels) == (expected.paths, expected.labels)


def test_names_that_are_not_utf_8(partition: Path) -> None:
    content = partition.read_bytes().replace(b"Dresses", b"Dr\xe4sses")
    partition.write_bytes(content)
    assert b"Dr\xe4sses" in InShop(partition.parent).paths[0].encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("kept", "message"), [(0, "line 1: found the end"), (1, "line 2: found the end of the file")])
def test_no_lines(partition: Path, kept: int, message: str) -> None:
    partition.write_text("\n".join(partition.read_text().splitlines()[:kept]))
    with pytest.raises(ValueError, match=message):
        InShop(partition.parent)


def test_cut_short(partition: Path) -> None:
    lines = partition.read_text().splitlines()
    partition.write_text("\n".join([*lines, "", "  "]))
    assert len(InShop(partition.parent)) == 8
    for rows in (lines[:-1], [*lines, lines[-1]]):
        partition.write_text("\n".join(rows))
        with pytest.raises(ValueError, match=rf"line 1: found 8 as the number of images, expected {len(rows) - 2}, "):
            InShop(partition.parent)

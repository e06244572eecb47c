from collections import Counter
from pathlib import Path

import glyphs_as_cub
import numpy as np
import pytest
from PIL import Image

from pml_gca.datasets import Glyphs, load_benchmark
from pml_gca.datasets.glyphs import render as glyph_render

CLASSES, FACES, SIZE = 4, 3, 32


@pytest.fixture
def few_glyphs(monkeypatch, tmp_path):
    """Twenty letters in three faces, with a separate cache."""
    paths = glyph_render.font_paths()[::5][:FACES]
    codes = [ord(letter) for letter in "ABCDEFGHKMNPRSTUVWZa"]
    monkeypatch.setattr(glyph_render, "font_paths", lambda: paths)
    monkeypatch.setattr(glyph_render, "MIN_FACES", FACES)
    monkeypatch.setattr(glyph_render, "covered_codes", lambda _: (codes, [set(codes)] * FACES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_written_folder_reads_as_cub(few_glyphs, tmp_path, capsys):
    folder = tmp_path / "new" / "glyphs"
    glyphs_as_cub.main([str(folder), "--classes", str(CLASSES), "--image-size", str(SIZE)])
    assert f"{2 * CLASSES * FACES} images of {2 * CLASSES} classes in {folder}" in capsys.readouterr().out
    benchmark = load_benchmark("cub", folder, train_transform=np.asarray, test_transform=np.asarray, val_fraction=0)
    for split, dataset, first in (("train", benchmark.train, 1), ("test", benchmark.test["test"], 101)):
        assert dataset.classes == list(range(first, first + CLASSES))
        assert Counter(dataset.labels.tolist()) == dict.fromkeys(range(CLASSES), FACES)
        glyphs = Glyphs(split, image_size=128, augment=False)
        rows = {(int(glyphs.labels[row]), int(glyphs.face_index[row])): row for row in range(len(glyphs))}
        for (image, label), file in zip(dataset, dataset.files, strict=True):
            class_folder, face = Path(file).parent.name, int(Path(file).stem)
            assert class_folder == f"{first + label:03d}.{ord(glyphs.classes[label]):04x}"
            assert image.shape == (SIZE, SIZE)
            drawn = glyphs[rows.pop((label, face))][0][0].numpy() * 255
            # Each pixel is about the mean of the 4 x 4 that it stands for.
            means = drawn.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
            assert means.max() > 100
            assert np.abs(image - means).mean() < 10


def test_protocol_accepts_the_folder(few_glyphs, tmp_path):
    glyphs_as_cub.main([str(tmp_path / "glyphs"), "--classes", "4", "--image-size", "40"])
    benchmark = load_benchmark("cub", tmp_path / "glyphs", image_size=16, val_fraction=0.25)
    assert benchmark.val is not None
    assert [part.num_classes for part in (benchmark.train, benchmark.val, *benchmark.test.values())] == [2, 2, 4]
    assert benchmark.train[0][0].shape == (3, 16, 16)
    with Image.open(benchmark.train.files[0]) as image:
        assert image.size == (40, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "1"], "--classes must lie in [2, 100], got 1"),
        (["--classes", "101"], "--classes must lie in [2, 100], got 101"),
        (["--classes", "few"], "argument --classes: invalid int value: 'few'"),
        (["--image-size", "15"], "--image-size must be at least 16, got 15"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        glyphs_as_cub.main([str(tmp_path / "glyphs"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "glyphs").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    kept = tmp_path / "CUB_200_2011" / "images.txt"
    kept.parent.mkdir()
    kept.write_text("1 birds.jpg\n")
    with pytest.raises(SystemExit, match=f"^{kept.parent} exists already$"):
        glyphs_as_cub.main([str(tmp_path)])
    assert [kept] == [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept.read_text() == "1 birds.jpg\n"
    with pytest.raises(SystemExit):
        glyphs_as_cub.main([str(kept)])
    assert f"folder must be a folder or not exist yet; {kept} is a file" in capsys.readouterr().err

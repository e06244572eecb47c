import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import emoji_as_folders as emoji
import pytest
from PIL import Image

from pml_gca.datasets import ClassFolder

NAMES = ("anchor", "cat-face", "dog", "hedgehog", "light-bulb", "owl")
LEFT_OUT = (
    "man-cook",
    "women-with-bunny-ears",
    "thumbs-up-light-skin-tone",
    "crossed-flags",
    "back-arrow",
    "one-thirty",
)


def write_package(place: Path, design: str, names) -> None:
    place.mkdir(parents=True)
    number = emoji.DESIGNS.index(design)
    icons = {name: {"body": f'<path d="M{number} {i}h9v9z"/>'} for i, name in enumerate(names)}
    content = {"prefix": design, "icons": icons, "width": 36, "height": 48}
    (place / "icons.json").write_text(json.dumps(content))
    license = {"title": "Apache 2.0", "url": "https://example.org/license"}
    info = {"name": design.title(), "author": {"name": "A Studio", "url": "https://example.org"}, "license": license}
    (place / "info.json").write_text(json.dumps(info))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    for i, design in enumerate(emoji.DESIGNS):
        names = [*NAMES, *LEFT_OUT, "rare"] if i < emoji.MIN_DESIGNS - 1 else [*NAMES, *LEFT_OUT]
        write_package(folder / "node_modules" / emoji.PACKAGES[design], design, names)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """SVG documents in the order they are drawn; the drawing is a plain square."""
    documents = []

    def svg_to_bytes(svg_string, background, skip_system_fonts):
        assert (background, skip_system_fonts) == ("white", True)
        documents.append(svg_string)
        if "broken" in svg_string:
            raise ValueError("broken SVG")
        width, height = (int(n) for n in re.search(r'width="(\d+)" height="(\d+)"', svg_string).groups())
        file = io.BytesIO()
        Image.new("RGB", (width, height), (len(documents) % 256, 9, 9)).save(file, "PNG")
        return file.getvalue()

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    return documents


def test_a_class_per_emoji_and_an_image_per_design(packages, drawn, tmp_path, capsys):
    folder = tmp_path / "emoji"
    emoji.main([str(packages), str(folder), "--image-size", "24"])
    assert f"72 images of 6 emoji in {folder}" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == sorted(NAMES)
    for name in NAMES:
        assert sorted(p.stem for p in (folder / name).iterdir()) == sorted(emoji.DESIGNS)
    first = drawn[0]
    assert 'width="24" height="24"' in first
    assert 'viewBox="0 0 36 48"' in first
    assert '<path d="M0 0h9v9z"/>' in first
    license = (folder / "LICENSE-noto.txt").read_text()
    assert license == "Noto by A Studio, https://example.org\nApache 2.0, https://example.org/license\n"
    data = ClassFolder(folder, "train", image_size=16, progress=False)
    assert (data.num_classes, len(data)) == (2, 24)
    assert not data.left_out


def test_broken_drawings_are_counted(packages, drawn, tmp_path, capsys):
    file = packages / "node_modules" / emoji.PACKAGES["twemoji"] / "icons.json"
    file.write_text(file.read_text().replace("M2 1h9v9z", "broken"))
    emoji.main([str(packages), str(tmp_path / "emoji")])
    assert "Not drawn, as their SVG is broken: 1 of twemoji" in capsys.readouterr().out
    assert not (tmp_path / "emoji" / "cat-face" / "twemoji.png").exists()


def test_a_stopped_run_leaves_nothing_in_the_way(packages, drawn, tmp_path, monkeypatch):
    def stop(svg, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(emoji, "draw", stop)
        with pytest.raises(KeyboardInterrupt):
            emoji.main([str(packages), str(tmp_path / "emoji")])
    assert not (tmp_path / "emoji").exists()
    emoji.main([str(packages), str(tmp_path / "emoji")])
    assert len(list((tmp_path / "emoji").glob("*/*.png"))) == 72
    assert sorted(p.name for p in tmp_path.iterdir()) == ["emoji", "packages"]


@pytest.mark.parametrize("place", ["{design}", "@iconify-json/{design}"])
def test_packages_may_lie_in_the_folder_itself(place, tmp_path):
    write_package(tmp_path / place.format(design="fxemoji"), "fxemoji", NAMES)
    assert list(emoji.read_design(tmp_path, "fxemoji").drawings) == list(NAMES)


def test_hidden_icons_are_no_class_and_own_sizes_count(tmp_path):
    write_package(tmp_path / "noto", "noto", NAMES)
    file = tmp_path / "noto" / "icons.json"
    content = json.loads(file.read_text())
    content["icons"]["dog"] |= {"width": 10, "left": -2}
    content["icons"]["owl"]["hidden"] = True
    file.write_text(json.dumps(content))
    drawings = emoji.read_design(tmp_path, "noto").drawings
    assert "owl" not in drawings
    assert 'viewBox="-2 0 10 48"' in drawings["dog"]


def test_a_missing_package_is_named_with_the_command_that_gets_it(packages, drawn, tmp_path):
    place = packages / "node_modules" / "@iconify-json" / "openmoji"
    place.rename(tmp_path / "elsewhere")
    get = f"npm install --prefix {packages} @iconify-json/openmoji"
    wanted = f"{packages} has no package @iconify-json/openmoji; get it: {get}"
    with pytest.raises(SystemExit, match=re.escape(wanted)):
        emoji.main([str(packages), str(tmp_path / "emoji")])
    assert not (tmp_path / "emoji").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"icons": {"dog": {}}}', '{"icons": 3}'])
def test_a_broken_package_is_named(packages, drawn, tmp_path, content):
    (packages / "node_modules" / "@iconify-json" / "noto" / "icons.json").write_text(content)
    with pytest.raises(
        SystemExit, match=r"noto is no whole icon set \(\w+: .*npm install .*--force @iconify-json/noto"
    ):
        emoji.main([str(packages), str(tmp_path / "emoji")])


def test_existing_folder_is_not_overwritten(packages, drawn, tmp_path):
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "own.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is there already and not empty"):
        emoji.main([str(packages), str(tmp_path / "emoji")])
    assert not drawn


def test_the_renderer_is_named_where_it_is_missing(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match="pip install resvg_py"):
        emoji.main([str(packages), str(tmp_path / "emoji")])


@pytest.mark.parametrize("size", ["8", "2000", "big"])
def test_bad_sizes(size, capsys):
    with pytest.raises(SystemExit):
        emoji.main(["a", "b", "--image-size", size])
    assert "--image-size" in capsys.readouterr().err

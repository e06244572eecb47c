from typing import Any

import numpy as np
import pytest
from helpers.picture_files import ALPHA, COLOUR, GREY, HEIGHT, RNG, WIDTH, opened, pixels, png, saved, tiff
from PIL import Image

from pml_gca.datasets.rgb import UnknownRangeError, is_transparent, to_rgb, what_to_do

SIXTEEN = GREY.astype(np.uint16) * 257
WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "RGBa", *WIDE)
Image.init()


def picture(mode: str) -> Image.Image:
    """One picture in any mode: `GREY` if the mode has more than 8 bits, else `COLOUR`."""
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32))
    if mode in WIDE:
        return Image.frombytes(mode, (WIDTH, HEIGHT), SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    colour = Image.fromarray(COLOUR)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        colour.putalpha(Image.fromarray(ALPHA))
        colour = colour.convert("LA") if mode == "La" else colour
    return colour.convert(mode)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(int)[:, :, None], 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(float)[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(int)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_format(mode: str) -> None:
    seen = []
    for kind in Image.SAVE:
        data = saved(picture(mode), kind) if kind not in ("ICNS", "PDF") else None  # large, and not readable
        if data is None:
            continue
        found = opened(data)
        if found.mode in WIDE and mode in WIDE:
            if not np.array_equal(np.asarray(found).astype(float), np.asarray(picture(mode)).astype(float)):
                continue  # what is read is not what was given: releases of Pillow differ
            expected = grey(GREY)
        elif found.mode in WIDE:  # SPIDER stores only floats
            expected = grey(np.asarray(picture(mode).convert("F")))
        elif is_transparent(found):
            rgba = np.asarray(opened(data).convert("RGBA"))
            expected = on_white(rgba[..., :3], rgba[..., 3])
        else:
            expected = np.asarray(opened(data).convert("RGB")).astype(int)
        try:
            assert np.abs(pixels(found) - expected).max() <= 1, kind
        except UnknownRangeError:  # 0 to 255 as 16 bits, or fractions of more than 1
            assert kind == "SPIDER" or (mode == "I" and found.mode in WIDE)
        seen.append(kind)
    if mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        assert "TIFF" in seen
    if mode == "I;16":
        assert "PNG" in seen


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_memory(mode: str) -> None:
    image = picture(mode)
    before = image.tobytes()
    if mode in WIDE:
        expected = grey(GREY)
    elif is_transparent(image):
        plain = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
        rgba = np.asarray(image.convert(plain).convert("RGBA"))
        expected = on_white(rgba[..., :3], rgba[..., 3])
    else:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(image) - expected).max() <= 1
    assert (image.mode, image.tobytes()) == (mode, before)


@pytest.mark.parametrize("scale", [257, 256])  # both occur in files
@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits(scale: int, order: str) -> None:
    values = GREY.astype(np.uint16) * scale
    data = values.astype(order + "u2").tobytes()
    assert (pixels(opened(tiff((WIDTH, HEIGHT), data, 16, order=order))) == grey(GREY)).all()
    assert (pixels(opened(png(values, 16))) == grey(GREY)).all()
    assert (pixels(opened(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes())) == grey(GREY)).all()
    plain = " ".join(map(str, values.flatten())).encode()
    assert (pixels(opened(b"P2 %d %d 65535\n" % (WIDTH, HEIGHT) + plain)) == grey(GREY)).all()


@pytest.mark.parametrize("white", [1023, 4095, 40000])
def test_pgm_of_other_whites(white: int) -> None:
    values = np.rint(GREY / 255 * white).astype(">u2")
    found = pixels(opened(b"P5 %d %d %d\n" % (WIDTH, HEIGHT, white) + values.tobytes()))
    assert np.abs(found - grey(GREY)).max() <= 1
    assert found[0, :2, 0].tolist() == [0, 255]


def test_twelve_bits() -> None:
    values = np.rint(GREY / 255 * 4095).astype(np.uint16).reshape(-1, 2)
    first, second = values.T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    found = opened(tiff((WIDTH, HEIGHT), packed.tobytes(), 12))
    assert (pixels(found) == grey(GREY)).all()


def test_white_is_zero() -> None:
    size = (WIDTH, HEIGHT)
    inverse = (65535 - SIXTEEN).astype("<u2")
    assert (pixels(opened(tiff(size, inverse.tobytes(), 16, white_is_zero=True))) == grey(GREY)).all()
    floats = 1 - GREY.astype("<f4") / 255
    assert (pixels(opened(tiff(size, floats.tobytes(), 32, white_is_zero=True, kind=3))) == grey(GREY)).all()
    assert (pixels(opened(tiff(size, (255 - GREY).tobytes(), 8, white_is_zero=True))) == grey(GREY)).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_several_channels(channels: int) -> None:
    eight = np.concatenate([COLOUR[..., : channels - 1 + channels % 2], ALPHA[..., None]], axis=2)[..., :channels]
    found = pixels(opened(png(eight.astype(np.uint16) * 257, 16)))
    twin = pixels(opened(png(eight, 8)))
    assert (found == twin).all()
    if channels % 2 == 0:
        colour = grey(eight[..., 0]) if channels == 2 else eight[..., :3]
        assert np.abs(found - on_white(colour, ALPHA)).max() <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [2, 3])
def test_wide_tiff_of_unknown_white(kind: int, order: str) -> None:
    form = f"{order}{'if'[kind - 2]}4"
    whole = opened(tiff((WIDTH, HEIGHT), GREY.astype(form).tobytes(), 32, kind=kind, order=order))
    assert (pixels(whole) == grey(GREY)).all()
    wide = opened(tiff((WIDTH, HEIGHT), SIXTEEN.astype(form).tobytes(), 32, kind=kind, order=order))
    with pytest.raises(
        UnknownRangeError, match=r"the picture holds .*, 0 to 65535, and the value of white is not known"
    ):
        to_rgb(wide)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2), -1, np.int32), r"32-bit integers, -1 to -1, .*; expected whole numbers from 0 to 255$"),
        (np.full((2, 2), 256, np.int32), "32-bit integers, 256 to 256"),
        (np.array([[0, 1.5]], np.float32), "floats, 0 to 1.5, .*; expected floats from 0 to 1, or whole numbers"),
        (np.array([[-0.1, 1]], np.float32), "floats, -0.1 to 1"),
        (np.array([[0, np.nan]], np.float32), "floats, nan to nan"),
        (np.array([[0, np.inf]], np.float32), "floats, 0 to inf"),
        (np.array([[0, 255]], np.uint16), "values of 16 bits, 0 to 255, which is all black if 65535 is white"),
        (np.array([[1, 1]], np.uint16), "values of 16 bits, 1 to 1"),
    ],
)
def test_refusals_give_the_reason(values: np.ndarray, message: str, tmp_path: Any) -> None:
    with pytest.raises(UnknownRangeError, match=f"^the picture holds {message}") as caught:
        to_rgb(Image.fromarray(values))
    assert what_to_do(caught.value) == "save it with 8 bits, or with 16 and 65535 as white"
    Image.fromarray(values).save(tmp_path / "named.tif")
    with Image.open(tmp_path / "named.tif") as file, pytest.raises(UnknownRangeError, match=r"^/.*named\.tif holds"):
        to_rgb(file)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_black(mode: str) -> None:
    assert (pixels(Image.new(mode, (3, 2))) == 0).all()


def test_one_transparent_colour() -> None:
    for depth in (2, 4, 8, 16):
        top = 2**depth - 1
        values = RNG.integers(0, top + 1, (HEIGHT, WIDTH))
        values[0, :3] = top, top // 3, 0
        chosen = int(values[0, 1])
        found = pixels(opened(png(values, depth, transparent=chosen.to_bytes(2, "big"))))
        eight = values >> 8 if depth == 16 else values * (255 // top)
        assert (found == grey(np.where(values == chosen, 255, eight))).all(), depth
    for depth, wide in ((8, COLOUR.astype(int)), (16, COLOUR.astype(int) * 256 + 7)):
        chosen = wide[3, 4]
        data = png(wide, depth, transparent=b"".join(int(c).to_bytes(2, "big") for c in chosen))
        same = (COLOUR[3, 4] == COLOUR).all(axis=2)
        assert (pixels(opened(data)) == np.where(same[..., None], 255, COLOUR)).all()


def test_transparent_palettes() -> None:
    indices = RNG.integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8)
    palette = RNG.integers(0, 256, (4, 3))
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.tobytes())
    image.putpalette(palette.flatten().tolist())
    alpha = bytes([0, 100, 255, 255])
    as_bytes = saved(image, "PNG", transparency=alpha)
    expected = on_white(palette[indices], np.frombuffer(alpha, np.uint8)[indices])
    assert as_bytes is not None
    assert np.abs(pixels(opened(as_bytes)) - expected).max() <= 1
    for kind in ("PNG", "GIF"):
        as_index = saved(image, kind, transparency=2)
        assert as_index is not None
        assert (pixels(opened(as_index)) == np.where((indices == 2)[..., None], 255, palette[indices])).all()
    image.putpalette(np.concatenate([palette, [[0], [100], [255], [255]]], axis=1).flatten().tolist(), "RGBA")
    assert np.abs(pixels(image) - expected).max() <= 1


def test_black_and_transparent_is_white() -> None:
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert (pixels(Image.new(mode, (2, 2), colour)) == 255).all()
    assert (pixels(Image.new("RGBA", (2, 2), (9, 8, 7, 255))) == [9, 8, 7]).all()

from itertools import product

import numpy as np
import pytest
from helpers.picture_files import COLOUR, exif, jpeg, opened, pixels, saved
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pml_gca.datasets.rgb import to_rgb


@pytest.mark.parametrize(("orientation", "kind"), list(product(range(1, 9), ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])))
def test_upright(orientation: int, kind: str) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    data = saved(Image.fromarray(COLOUR), kind, exif=block, **({"lossless": True} if kind == "WEBP" else {}))
    assert data is not None
    expected = ImageOps.exif_transpose(opened(data).convert("RGB") if kind == "TIFF" else opened(data))
    assert (pixels(opened(data)) == np.asarray(expected)).all()
    turned = to_rgb(opened(data))
    assert (np.asarray(to_rgb(turned)) == np.asarray(turned)).all()  # once is enough


STORED = Image.fromarray(COLOUR)
ORIENTATION = (0x0112, 3, 1, b"\0\6\0\0")
SIDEWAYS = np.asarray(opened(jpeg(STORED, b"")).transpose(Image.Transpose.ROTATE_270)).astype(int)
UNTURNED = np.asarray(opened(jpeg(STORED, b""))).astype(int)


@pytest.mark.parametrize(
    "entries",
    [
        [ORIENTATION],
        [ORIENTATION, (0x0128, 2, 2, b"2\0\0\0")],  # the unit of resolution as text
        [ORIENTATION, (0x011A, 5, 1, b"\xff\xff\xff\xff")],  # a fraction beyond the end
        [ORIENTATION, (0x8769, 4, 1, b"\xff\xff\xff\xff")],  # a block beyond the end
        [ORIENTATION, (0x8769, 2, 4, b"text")],
        [ORIENTATION, (0x9999, 77, 1, b"\0\0\0\0")],  # an unknown type
        [(0x0112, 4, 1, b"\0\0\0\6")],  # as a long number
        [(0x0112, 2, 2, b"6\0\0\0")],  # as text
        [(0x0112, 1, 1, b"\6\0\0\0")],  # as a byte
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_odd_metadata_beside_an_orientation(entries: list[tuple[int, int, int, bytes]]) -> None:
    for order in "><":
        turned = [(t, k, c, v if order == ">" or k in (1, 2) else _little(k, v)) for t, k, c, v in entries]
        assert (pixels(opened(jpeg(STORED, exif(turned, order)))) == SIDEWAYS).all()


def _little(kind: int, value: bytes) -> bytes:
    return value[1::-1] + value[:1:-1] if kind == 3 else value[::-1]


@pytest.mark.filterwarnings("ignore")
def test_cut_metadata_is_turned_if_the_orientation_is_there() -> None:
    whole = exif([ORIENTATION, (0x0128, 3, 1, b"\0\2\0\0"), (0x010F, 2, 4, b"me\0\0")])
    for length in range(len(whole)):
        found = pixels(opened(jpeg(STORED, whole[:length])))
        assert (found == (SIDEWAYS if length >= 22 else UNTURNED)).all()  # whose entry ends there


def is_turned(found: np.ndarray, stored: np.ndarray) -> bool:
    """Whether it is the stored picture in one of its eight orientations."""
    turned = [np.rot90(stored, turns) for turns in range(4)]
    return any(one.shape == found.shape and (one == found).all() for t in turned for one in (t, t[:, ::-1]))


BLOCK = exif([ORIENTATION, (0x011A, 5, 1, b"\0\0\0\x4a"), (0x0128, 3, 1, b"\0\2\0\0"), (0x8769, 4, 1, b"\0\0\0\x26")])
MUTATIONS = st.dictionaries(st.integers(0, len(BLOCK) - 1), st.integers(0, 255), max_size=6)


@given(changes=MUTATIONS, end=st.integers(0, len(BLOCK)), tail=st.binary(max_size=40))
@example(changes={}, end=len(BLOCK), tail=b"")
@pytest.mark.filterwarnings("ignore")
def test_no_metadata_makes_a_picture_unreadable(changes: dict[int, int], end: int, tail: bytes) -> None:
    block = bytearray(BLOCK)
    for place, value in changes.items():
        block[place] = value
    data = jpeg(STORED, bytes(block[:end]) + tail)
    try:
        opened(data).load()
    except Exception:  # then Pillow does not decode it
        return
    found = pixels(opened(data))
    assert is_turned(found, UNTURNED)
    if not changes and end == len(BLOCK):
        assert (found == SIDEWAYS).all()


@given(block=st.binary(max_size=120) | st.integers(0, len(BLOCK)).map(lambda end: BLOCK[:end]))
@pytest.mark.filterwarnings("ignore")
def test_metadata_of_any_bytes(block: bytes) -> None:
    assert is_turned(pixels(opened(jpeg(STORED, block))), UNTURNED)
    for kind in ("PNG", "WEBP"):
        data = saved(STORED, kind, exif=block, **({"lossless": True} if kind == "WEBP" else {}))
        assert data is None or is_turned(pixels(opened(data)), COLOUR)

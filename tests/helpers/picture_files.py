"""Pictures for tests: files that Pillow reads but does not write, and one random picture."""

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pml_gca.datasets.rgb import to_rgb

HEIGHT, WIDTH = 12, 10
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GREY[0, :2] = 0, 255
COLOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA[0, :2] = 0, 255


def png(pixels: np.ndarray, depth: int, transparent: bytes | None = None) -> bytes:
    """(H, W) grey, or (H, W, 2, 3 or 4) grey + alpha, RGB or RGBA, of 2, 4, 8 or 16 bits; `transparent` is tRNS."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, *channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 1]
    if depth < 8:
        bits = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        rows = pixels.reshape(height, -1).astype(">u2" if depth == 16 else np.uint8).view(np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent is not None else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")])


def tiff(
    size: tuple[int, int], data: bytes, bits: int, *, white_is_zero: bool = False, kind: int = 1, order: str = "<"
) -> bytes:
    """A grey picture of one strip; `kind` is 1 for unsigned, 2 for signed, 3 for floats."""
    tags: Mapping[int, tuple[int, int]] = {
        256: (4, size[0]),
        257: (4, size[1]),
        258: (3, bits),
        259: (3, 1),
        262: (3, 0 if white_is_zero else 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, size[1]),
        279: (4, len(data)),
        339: (3, kind),
    }
    entries = b"".join(
        struct.pack(order + "HHI", tag, form, 1)
        + struct.pack(order + ("HH" if form == 3 else "I"), value, *[0] * (form == 3))
        for tag, (form, value) in tags.items()
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)


def jpeg(picture: Image.Image, exif: bytes) -> bytes:
    """A JPEG with any bytes as its EXIF block."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    data = b"Exif\0\0" + exif
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(data) + 2) + data + file.getvalue()[2:]


def exif(entries: list[tuple[int, int, int, bytes]], order: str = ">") -> bytes:
    """An EXIF block of entries: tag, type, count and the 4 bytes of the value as they are written."""
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8)
    body = b"".join(struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return head + struct.pack(order + "H", len(entries)) + body + b"\0" * 4


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(image: Image.Image) -> np.ndarray:
    """The picture as `to_rgb` makes it, as integers."""
    made = to_rgb(image)
    assert made.mode == "RGB"
    return np.asarray(made).astype(int)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """The file; None if Pillow cannot write this mode in it, or cannot read its own file."""
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(file, kind, **options)
            opened(file.getvalue()).load()
    except Exception:  # Pillow's plugins raise errors of many kinds
        return None
    return file.getvalue()

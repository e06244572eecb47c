"""Conversion of any picture that Pillow opens to upright 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..utils.optional_imports import import_pillow

ORIENTATION = 0x0112
"""EXIF's tag for the orientation of the camera."""

TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Pillow's name of the operation that makes a picture of each orientation upright."""

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF


class UnknownRangeError(ValueError):
    """The value of white is not known for a picture of more than 8 bits."""


def to_rgb(image: Any) -> Any:
    """Return a picture as people see it: upright 8-bit RGB, with white where it is transparent.

    - Orientation: from EXIF or XMP. Metadata that cannot be read is ignored.
    - Transparency of any kind (alpha, palette, one transparent colour): the picture is laid on white.
    - 9 to 16 bits: scaled to 8 bits, white to white. A 16-bit picture is refused if its largest value is from 1 to
      255: it holds 8-bit values in a wider file, or is too dark to see.
    - 32-bit integers and floats, whose white is not known: whole numbers up to 255 are taken as they are, and floats
      up to 1 are multiplied by 255. Others are refused.

    Args:
        image: a PIL image of any mode, decoded or not. Its pixels do not change.

    Returns:
        A new PIL image of mode RGB.

    Raises:
        UnknownRangeError: the value of white is not known.
        Exception: Pillow's own, for a file that it cannot decode.
    """
    decode(image)
    turn = TURNS.get(_orientation(image))
    picture = _eight_bits(image) if image.mode[0] in "IF" else image
    if is_transparent(picture):
        picture = _on_white(picture)
    rgb = picture.convert("RGB")
    if turn is not None:
        rgb = rgb.transpose(getattr(import_pillow().Transpose, turn))
    rgb.info = {}  # or the next reader of the orientation would turn the picture again
    return rgb


def decode(image: Any) -> None:
    """Decode an opened picture. Before, scale the transparent colour of a PNG to the bits of Pillow's pixels."""
    colour = getattr(image, "info", {}).get("transparency")
    raw_mode = str(getattr(image, "tile", None) and image.tile[0][3])
    if getattr(image, "format", None) == "PNG" and colour is not None:
        if image.mode == "L" and raw_mode in ("L;2", "L;4"):
            image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[raw_mode]
        elif image.mode == "RGB" and raw_mode == "RGB;16B":
            image.info["transparency"] = tuple(channel >> 8 for channel in colour)
    image.load()


def is_transparent(image: Any) -> bool:
    """Return whether some pixels may be transparent."""
    palette = getattr(image, "palette", None)
    return (
        image.getbands()[-1] in ("A", "a")
        or "transparency" in image.info
        or (image.mode == "P" and palette is not None and palette.mode.endswith("A"))
    )


def what_to_do(error: BaseException) -> str:
    """Return advice for a file that could not be read because of `error`."""
    if type(error).__name__.startswith("DecompressionBomb"):
        return (
            "it has more pixels than Pillow reads by default: raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file, "
            "or scale it down"
        )
    if isinstance(error, UnknownRangeError):
        return "save it with 8 bits, or with 16 and 65535 as white"
    return "expected a file that Pillow can open: repair it"


def _orientation(image: Any) -> int:
    """Return the orientation, 1 to 8 as in EXIF; 1 (upright) if it is missing or cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return value[0] if isinstance(value, bytes) else int(value)
    except Exception:  # Pillow raises errors of many kinds on malformed metadata
        return 1


def _on_white(image: Any) -> Any:
    if image.mode == "La":  # Pillow converts it only to LA
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = import_pillow().new("RGBA", rgba.size, "white")
    return import_pillow().alpha_composite(white, rgba)


def _eight_bits(image: Any) -> Any:
    """Return a grey picture of more than 8 bits as L, or LA if one of its values is transparent."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = _bits(image, tags)
    grey = _scaled(image, values) if bits is None else values >> (bits - 8)
    if bits == 16 and 0 < values.max() < 256:
        raise _refusal(image, values, "values of 16 bits", "which is all black if 65535 is white, but not if 255 is")
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white; Pillow handles this only up to 8 bits
        grey = 255 - grey
    picture = import_pillow().fromarray(grey.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        picture.putalpha(import_pillow().fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return picture


def _bits(image: Any, tags: Any) -> int | None:
    """Return the number of bits of white, None if it is not known."""
    if image.mode.startswith("I;16"):
        return min(16, *tags.get(BITS_PER_SAMPLE, (16,)), 16)
    if image.mode == "I" and getattr(image, "format", None) in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        return 16
    return None


def _scaled(image: Any, values: Any) -> Any:
    """Return values without a known white, scaled to the range 0 to 255."""
    floats = image.mode == "F"
    low, high = float(values.min()), float(values.max())  # both NaN if there is one
    if floats and low >= 0 and high <= 1 + 1e-6:
        return np.rint(255 * np.minimum(values, 1))
    if low >= 0 and high <= 255 and (not floats or bool((values == np.rint(values)).all())):
        return values
    kind, expected = ("floats", "floats from 0 to 1, or whole") if floats else ("32-bit integers", "whole")
    why = f"and the value of white is not known; expected {expected} numbers from 0 to 255"
    raise _refusal(image, values, kind, why)


def _refusal(image: Any, values: Any, kind: str, why: str) -> UnknownRangeError:
    name = getattr(image, "filename", "") or "the picture"
    return UnknownRangeError(f"{name} holds {kind}, {values.min():g} to {values.max():g}, {why}")

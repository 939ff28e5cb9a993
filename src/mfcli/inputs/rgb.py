"""The RGB of every kind of picture that Pillow has loaded: 16-bit and float grey, transparency, CMYK, LAB."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

_BITS_TAG, _COMPRESSION_TAG, _PHOTOMETRIC_TAG, _PLANAR_TAG, _SAMPLE_FORMAT_TAG = 258, 259, 262, 284, 339
_UNCOMPRESSED, _WHITE_IS_ZERO, _CHANNELS_APART, _SIGNED = 1, 0, 2, 2
_OFTEN_WITHOUT_ALPHA = frozenset({"BMP", "TGA"})
"""Formats that many programs write with a fourth byte of 0 in place of alpha."""
_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""The 8-bit level of each 16-bit level."""
_LEVEL_STEPS = {"L;2": 85, "L;4": 17}
"""The 8-bit step between grey levels of 2 or 4 bits, by Pillow's name for how they are stored."""


def scale_transparent_level(picture: Image.Image) -> None:
    """Scale a PNG's transparent level to 8 bits like the pixels, before they are loaded; Pillow leaves it as stored."""
    level = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)
    stored = tiles[0].args if tiles else None
    if isinstance(level, int) and stored in _LEVEL_STEPS:
        picture.info["transparency"] = level * _LEVEL_STEPS[stored]
    elif isinstance(level, tuple) and stored == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in level)


def is_misread(picture: Image.Image) -> bool:
    """Return whether Pillow would read the two bytes of each value of a TIFF as two pixels."""
    tags = _tiff_tags(picture)
    apart = tags.get(_COMPRESSION_TAG, _UNCOMPRESSED) == _UNCOMPRESSED and tags.get(_PLANAR_TAG) == _CHANNELS_APART
    return apart and 16 in tags.get(_BITS_TAG, ())


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a loaded picture as RGB; itself, if it is."""
    if tags := _tiff_tags(picture):
        picture = _normalize_tiff_grey(picture, tags)
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        return _composite_on_white(picture)
    if picture.mode.startswith("I;16"):
        return _convert_grey(_EIGHT_BITS[np.asarray(picture).astype(np.uint16, copy=False)])
    if picture.mode == "I":
        return _convert_grey(_EIGHT_BITS[np.asarray(picture).clip(0, 65535)])
    if picture.mode == "F":
        return _convert_grey(_stretch(np.asarray(picture, np.float64)))
    if picture.mode == "LAB":
        return _lab_to_rgb(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    return getattr(picture, "tag_v2", {})


def _normalize_tiff_grey(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Convert the greys of a TIFF that Pillow leaves as they are stored to 16 bits with black at 0."""
    if picture.mode == "I" and _SIGNED not in tags.get(_SAMPLE_FORMAT_TAG, ()):
        return Image.fromarray(np.asarray(picture).view(np.uint32).clip(0, 65535).astype(np.uint16))
    if picture.mode == "I;16" and 12 in tags.get(_BITS_TAG, ()):
        return Image.fromarray(np.rint(np.asarray(picture) * (65535 / 4095)).astype(np.uint16))
    if picture.mode == "I;16" and tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        return Image.fromarray(65535 - np.asarray(picture))
    return picture


def _composite_on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey with one transparent level
        values = np.asarray(picture)
        return _convert_grey(np.where(values == picture.info["transparency"], np.uint8(255), _EIGHT_BITS[values]))
    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    if picture.format in _OFTEN_WITHOUT_ALPHA and rgba.getchannel("A").getextrema() == (0, 0):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _convert_grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    """Map the range of the finite values to uint8 0..255; infinities become the nearer end, NaN black."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * scale).astype(np.uint8)


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # only an in-place transform returns None
    return converted

"""From bytes to an upright RGB picture, safely.

Decides what every kind of picture means as RGB (orientation, 16-bit and float greys, transparency, CMYK) and refuses
what is broken, cut off or too large; which pixels a model then sees is preprocess.py's business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mfcli.errors import FailureCode, PictureError

DEFAULT_MAX_PIXELS = 178_956_970
"""Twice Pillow's own warning level: 0.5 GB as RGB."""

# Pillow's own cap is a global that warns at one size and raises at another; the caps here replace it.
Image.MAX_IMAGE_PIXELS = None

_PROGRAM_RUNNERS = frozenset({"EPS"})
"""Formats that Pillow decodes by starting another program (Ghostscript) on the file."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by the value of its EXIF orientation."""


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """A picture ready for preprocessing.

    Attributes:
        rgb: mode RGB, 8 bits a channel, upright.
        width: pixels, after the orientation was applied.
        height: pixels, after the orientation was applied.
    """

    rgb: Image.Image
    width: int
    height: int


def decode(file: BinaryIO, *, exif: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedPicture:
    """Decode the first frame of a picture.

    Args:
        file: binary and seekable.
        exif: whether to turn the picture upright by its EXIF orientation.
        max_pixels: the largest width x height that is decoded.

    Raises:
        PictureError: decode, truncated, too_large or unsupported.
    """
    with _pillow_errors():
        if not file.read(1):
            raise PictureError(FailureCode.TRUNCATED, "is empty (0 bytes)")
        file.seek(0)
        return _decode(file, exif, max_pixels)


def _decode(file: BinaryIO, exif: bool, max_pixels: int) -> DecodedPicture:
    with Image.open(file) as picture:
        if picture.format in _PROGRAM_RUNNERS:
            raise PictureError(FailureCode.UNSUPPORTED, f"is {picture.format}, which is not decoded here")
        if picture.width * picture.height > max_pixels:
            raise PictureError(
                FailureCode.TOO_LARGE, f"{picture.width}x{picture.height} is over --max-pixels {max_pixels}"
            )
        picture.load()
        rgb = _to_rgb(_upright(picture) if exif else picture)
        return DecodedPicture(rgb, rgb.width, rgb.height)


def _upright(picture: Image.Image) -> Image.Image:
    """Turn by the EXIF orientation; metadata that cannot be read turns nothing."""
    try:
        method = _UPRIGHT.get(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata raises almost anything, and says nothing about the pixels
        method = None
    return picture if method is None else picture.transpose(method)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError; plugins raise almost anything on hostile bytes."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(FailureCode.UNSUPPORTED, "is not a picture in a format that Pillow reads") from error
    except MemoryError as error:
        raise PictureError(FailureCode.TOO_LARGE, "does not fit into memory") from error
    except Exception as error:
        message = _one_line(error)
        cut_off = isinstance(error, EOFError) or "truncated" in message.lower() or "unexpected end" in message.lower()
        code = FailureCode.TRUNCATED if cut_off else FailureCode.DECODE
        raise PictureError(code, f"cannot be decoded: {message}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        return _on_white(picture)
    if picture.mode.startswith("I"):
        return _grey(np.asarray(picture, np.float64) / 257)
    if picture.mode == "F":
        return _grey(_stretched(np.asarray(picture, np.float64)))
    if picture.mode == "LAB":
        return _lab_to_rgb(picture)
    return picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey with one transparent level
        level = picture.info["transparency"]
        values = np.asarray(picture, np.float64)
        return _grey(np.where(values == level, 255, values / 257))
    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "L").convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """Map the range of the finite values to 0..255; what is not finite goes to the nearer end, NaN to black."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return (values - low) * scale


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # only an in-place transform returns None
    return converted

"""From bytes to an upright RGB picture, safely.

Decides what every kind of picture means as RGB (orientation, 16-bit and float greys, transparency, CMYK) and refuses
what is broken, cut off or too large; which pixels a model then sees is preprocess.py's business.
"""

import contextlib
import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mfcli.errors import FailureCode, PictureError, one_line
from mfcli.inputs.codecs import DEFAULT_FORMATS, OPTIONAL_FORMATS
from mfcli.inputs.truncation import is_truncated
from mfcli.settings import DEFAULT_MAX_PIXELS

_DEFAULT_FORMATS = tuple(DEFAULT_FORMATS)
_PREFIX_BYTES = 16
_PNG_BEGINNING = b"\x89PNG"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""What follows `ftyp` in a HEIF file; AVIF has brands of its own, or mif1 with an AVIF brand after it."""
_CUT_OFF = ("truncated", "unexpected end", "not enough image data")
"""What decoders say of a file that lacks its end."""
_OFTEN_WITHOUT_ALPHA = frozenset({"BMP", "TGA"})
"""Formats that many programs write with a fourth byte of 0 instead of an alpha."""

_ORIENTATION_TAG = 0x0112
_BITS_TAG, _COMPRESSION_TAG, _PHOTOMETRIC_TAG, _PLANAR_TAG, _SAMPLE_FORMAT_TAG = 258, 259, 262, 284, 339
_UNCOMPRESSED, _WHITE_IS_ZERO, _CHANNELS_APART, _SIGNED = 1, 0, 2, 2
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
_INVERSE = {6: 8, 8: 6}
"""The orientations whose turning another one undoes; the rest undo themselves."""

_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""The 8-bit level of each 16-bit one."""
_LEVEL_STEPS = {"L;2": 85, "L;4": 17}
"""What a grey level of 2 or 4 bits counts in 8 bits, by Pillow's name of how it is stored."""
_FLAT_LEVELS = 3
_MAX_PROBED_BYTES = 2**28
_MAX_PNG_TEXT = 2**26
_ZEROS = bytes(16)
_PROBE = b"\x55" * 64
_END, _ARITHMETIC = 0xD9, {0xC9, 0xCA}
"""The kinds of a JPEG's end marker, and of those that begin a picture with arithmetic coding."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that ends the data of a scan and, but for the end marker, begins a segment with a length."""
_globals_lock = threading.Lock()
_caps: list[int] = []
_cap: int | None = None
_ghostscript: str | bool | None = None


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


def decode(
    file: BinaryIO,
    *,
    exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: Sequence[str] = _DEFAULT_FORMATS,
) -> DecodedPicture:
    """Decode the first frame of a picture.

    Args:
        file: binary and seekable.
        exif: whether to turn the picture upright by its EXIF orientation.
        max_pixels: the largest width x height that is decoded.
        formats: the formats that it may be in, by Pillow's names; no other decoder sees the file.

    Raises:
        PictureError: decode, truncated, too_large or unsupported.
        MemoryError: there is too little memory for it.
    """
    with _pillow_errors(file, max_pixels):
        if not file.read(1):
            raise PictureError(FailureCode.TRUNCATED, "is empty (0 bytes)")
        file.seek(0)
        with _pillow_globals(max_pixels):
            _allow_long_texts()
            return _decode(file, exif, max_pixels, formats)


def _decode(file: BinaryIO, exif: bool, max_pixels: int, formats: Sequence[str]) -> DecodedPicture:
    with Image.open(file, formats=_readable(formats, file.read(_PREFIX_BYTES))) as picture:
        if picture.width * picture.height > max_pixels:
            raise PictureError(
                FailureCode.TOO_LARGE, f"{picture.width}x{picture.height} is over --max-pixels {max_pixels}"
            )
        if picture.format == "PNG":
            _check_png(file)
            _scale_transparent_level(picture)
        tags = getattr(picture, "tag_v2", {})  # those of a TIFF
        if _is_read_wrongly(tags):
            raise PictureError(
                FailureCode.UNSUPPORTED, "is an uncompressed TIFF with 16-bit channels apart, which is not decoded here"
            )
        orientation = _orientation(picture)
        picture.load()
        if picture.format in ("JPEG", "MPO") and _is_cut(file, picture):
            raise PictureError(FailureCode.TRUNCATED, "is truncated: its data ends before its last row")
        upright = _turned(picture, orientation, exif)
        rgb = _to_rgb(_tiff_levels(upright, tags) if tags else upright)
        return DecodedPicture(rgb, rgb.width, rgb.height)


def _readable(formats: Sequence[str], prefix: bytes) -> list[str]:
    """The formats whose decoders are here; HEIF's is in a package of its own, imported when a file needs it."""
    if "HEIF" in formats and "HEIF" not in Image.OPEN and _is_heif(prefix):
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    return [name for name in formats if name != "HEIF" or name in Image.OPEN]


@contextlib.contextmanager
def _pillow_globals(max_pixels: int) -> Iterator[None]:
    """While any thread decodes, let Pillow's cap of pixels be ours and its Ghostscript be switched off.

    Both are globals of the whole program. The cap, which opening, checking and loading obey, counts where a decoder
    finds another size than the header's; Pillow refuses from twice as much on. Without Ghostscript no decoder can start
    a program, whatever a file may make one open.
    """
    global _cap, _ghostscript
    from PIL import EpsImagePlugin  # takes half a millisecond

    with _globals_lock:
        if not _caps:
            _cap, _ghostscript = Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary
        _caps.append(max_pixels)
        Image.MAX_IMAGE_PIXELS, EpsImagePlugin.gs_binary = max(_caps), False
    try:
        yield
    finally:
        with _globals_lock:
            _caps.remove(max_pixels)
            Image.MAX_IMAGE_PIXELS = max(_caps) if _caps else _cap
            if not _caps:
                EpsImagePlugin.gs_binary = _ghostscript


def _allow_long_texts() -> None:
    """Let Pillow read long texts and colour profiles of a PNG; all its texts together have a limit of their own."""
    from PIL import PngImagePlugin  # not before a picture is opened, which imports it anyway

    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MAX_PNG_TEXT)


def _check_png(file: BinaryIO) -> None:
    """Check the checksums of all chunks, which decoding passes over: a tail of zeros would be a picture otherwise."""
    position = file.tell()
    file.seek(0)
    Image.open(file, formats=["PNG"]).verify()  # chunk by chunk: what follows the last one is not read
    file.seek(position)


def _scale_transparent_level(picture: Image.Image) -> None:
    """Bring the transparent level to the 8 bits that the pixels will have, which Pillow leaves as it is stored."""
    level = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)
    stored = tiles[0].args if tiles else None
    if isinstance(level, int) and stored in _LEVEL_STEPS:
        picture.info["transparency"] = level * _LEVEL_STEPS[stored]
    elif isinstance(level, tuple) and stored == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in level)


def _is_read_wrongly(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow takes the two bytes of each value of a TIFF for two pixels."""
    apart = tags.get(_COMPRESSION_TAG, _UNCOMPRESSED) == _UNCOMPRESSED and tags.get(_PLANAR_TAG) == _CHANNELS_APART
    return apart and 16 in tags.get(_BITS_TAG, ())


def _is_cut(file: BinaryIO, picture: Image.Image) -> bool:
    """Whether a JPEG's data ends early although an end marker or zeros follow, for which the decoder makes pixels up.

    Bytes put after the data change nothing in a whole picture and change one that still waits for data. Only a
    picture that may be cut is decoded again: one that ends in zeros, is progressive, or has a flat last block.
    """
    may_be_closed = "progressive" in picture.info or _ends_flat(picture)
    file.seek(-len(_ZEROS), io.SEEK_END)
    if not may_be_closed and file.read() != _ZEROS:
        return False
    file.seek(0)
    data = file.read(_MAX_PROBED_BYTES)
    markers = _markers_of_first(data)
    if markers.keys() & _ARITHMETIC:  # a whole one reads on, too
        return False
    if _END in markers:
        begun = data[: markers[_END]].rstrip(b"\xff")
        return may_be_closed and _is_another(begun + _PROBE + data[len(begun) :], picture)
    begun = data[: len(data.rstrip(b"\0")) + 1]  # one zero may belong to the data
    return data.endswith(_ZEROS) and _is_another(begun + _PROBE + b"\xff\xd9", picture)


def _ends_flat(picture: Image.Image) -> bool:
    left, top = (picture.width - 1) // 8 * 8, (picture.height - 1) // 8 * 8
    last_block = np.asarray(picture.crop((left, top, picture.width, picture.height)).convert("L"))
    return bool(np.ptp(last_block) <= _FLAT_LEVELS)


def _is_another(data: bytes, picture: Image.Image) -> bool:
    """Whether a JPEG has other pixels than `picture`; one that cannot be decoded says nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as other:
            return other.tobytes() != picture.tobytes()
    except MemoryError:
        raise
    except Exception:
        return False


def _markers_of_first(data: bytes) -> dict[int, int]:
    """The kinds of markers in a JPEG's first picture, with the place of the last of each.

    Another picture may follow the end marker, as in MPO, or anything else.
    """
    at, markers = 2, {}
    while _END not in markers and (found := _JPEG_MARKER.search(data, at)) is not None:
        markers[found[0][1]] = found.start()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return markers


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; metadata that cannot be read turns nothing."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata raises almost anything, and says nothing about the pixels
        return 1


def _turned(picture: Image.Image, orientation: int, exif: bool) -> Image.Image:
    """The picture upright, or, without exif, as stored; Pillow has turned a TIFF upright already."""
    if picture.format == "TIFF":
        method = None if exif else _UPRIGHT.get(_INVERSE.get(orientation, orientation))
    else:
        method = _UPRIGHT.get(orientation) if exif else None
    return picture if method is None else picture.transpose(method)


@contextlib.contextmanager
def _pillow_errors(file: BinaryIO, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError; plugins raise almost anything on hostile bytes."""
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        pixels = f"{found[0]} pixels are" if found else "is"
        raise PictureError(FailureCode.TOO_LARGE, f"{pixels} over --max-pixels {max_pixels}") from error
    except Exception as error:
        if is_truncated(file):
            code, message = FailureCode.TRUNCATED, "is truncated: it is shorter than its headers say"
        elif isinstance(error, UnidentifiedImageError):
            code, message = _unidentified(file)
        else:
            said = one_line(error)
            cut_off = isinstance(error, EOFError) or any(words in said.lower() for words in _CUT_OFF)
            code, message = FailureCode.TRUNCATED if cut_off else FailureCode.DECODE, f"cannot be decoded: {said}"
        raise PictureError(code, message) from error


def _unidentified(file: BinaryIO) -> tuple[FailureCode, str]:
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    if prefix.startswith(_PNG_BEGINNING):  # Pillow may take a damaged one for no picture at all
        return FailureCode.DECODE, "cannot be decoded: it is damaged after its first bytes"
    if _is_heif(prefix):
        return FailureCode.UNSUPPORTED, "is HEIF, which takes pillow-heif: pip install pillow-heif"
    for name in OPTIONAL_FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None  # looks at the first bytes alone
        if accept is not None and accept(prefix):
            return FailureCode.UNSUPPORTED, f"is {name}, which is decoded only on request: --formats {name.lower()}"
    return FailureCode.UNSUPPORTED, "is not a picture in a format that is decoded here"


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS


def _tiff_levels(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Bring the greys of a TIFF to 16 bits, black at 0, where Pillow leaves them as they are stored."""
    if picture.mode == "I" and _SIGNED not in tags.get(_SAMPLE_FORMAT_TAG, ()):
        return Image.fromarray(np.asarray(picture).view(np.uint32).clip(0, 65535).astype(np.uint16))
    if picture.mode == "I;16" and 12 in tags.get(_BITS_TAG, ()):
        return Image.fromarray(np.rint(np.asarray(picture) * (65535 / 4095)).astype(np.uint16))
    if picture.mode == "I;16" and tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        return Image.fromarray(65535 - np.asarray(picture))
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data or picture.mode in ("RGBa", "La"):
        return _on_white(picture)
    if picture.mode.startswith("I;16"):
        return _grey(_EIGHT_BITS[np.asarray(picture).astype(np.uint16, copy=False)])
    if picture.mode == "I":
        return _grey(_EIGHT_BITS[np.asarray(picture).clip(0, 65535)])
    if picture.mode == "F":
        return _grey(_stretched(np.asarray(picture, np.float64)))
    if picture.mode == "LAB":
        return _lab_to_rgb(picture)
    return picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey with one transparent level
        values = np.asarray(picture)
        return _grey(np.where(values == picture.info["transparency"], np.uint8(255), _EIGHT_BITS[values]))
    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    if picture.format in _OFTEN_WITHOUT_ALPHA and rgba.getchannel("A").getextrema() == (0, 0):
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """Map the range of the finite values to uint8 0..255; what is not finite goes to the nearer end, NaN to black."""
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

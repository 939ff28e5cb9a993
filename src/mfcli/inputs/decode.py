"""From bytes to an upright RGB picture, safely.

Defines the RGB of every kind of picture (orientation, 16-bit and float grey, transparency, CMYK) and refuses what is
damaged, truncated or too large. Resizing and cropping for a model is done in models/preprocess.py.
"""

import contextlib
import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mfcli.errors import FailureCode, PictureError, one_line
from mfcli.files import GIT_LFS_START
from mfcli.inputs.codecs import DEFAULT_FORMATS, OPTIONAL_FORMATS
from mfcli.inputs.truncation import is_truncated
from mfcli.settings import DEFAULT_MAX_PIXELS

_DEFAULT_FORMATS = tuple(DEFAULT_FORMATS)
_PREFIX_BYTES = 16
_WEBP_HEAD_BYTES = 30
_PNG_SIGNATURE = b"\x89PNG"
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""What follows `ftyp` in a HEIF file; AVIF has brands of its own, or mif1 with an AVIF brand after it."""
_SAYS_TRUNCATED = ("truncated", "unexpected end", "not enough image data")
"""What the messages of decoders contain if a file lacks its end."""
JPEG_FORMATS = frozenset({"JPEG", "MPO"})
"""Formats that their decoder can scale down."""
_OFTEN_WITHOUT_ALPHA = frozenset({"BMP", "TGA"})
"""Formats that many programs write with a fourth byte of 0 in place of alpha."""

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
"""The operation that turns a picture upright, by the value of its EXIF orientation."""
_FIRST_SIDEWAYS = 5
"""The first of the orientations that swap width and height."""
_INVERSE = {6: 8, 8: 6}
"""The orientations whose operation is undone by that of another; the others are their own inverse."""

_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""The 8-bit level of each 16-bit level."""
_LEVEL_STEPS = {"L;2": 85, "L;4": 17}
"""The 8-bit step between grey levels of 2 or 4 bits, by Pillow's name for how they are stored."""
_FLAT_LEVELS = 3
_GREY_WITHOUT_DATA = 128
_LARGE_PIXELS = 2**20
_MAX_PROBED_BYTES = 2**28
_MAX_PNG_TEXT = 2**26
_ZEROS = bytes(16)
_PROBE = bytes(range(1, 255, 4))
"""What is inserted after the data of a JPEG: bytes that decode to different values with any table."""
_END, _ARITHMETIC = 0xD9, {0xC9, 0xCA}
"""The second bytes of a JPEG's end marker, and of the frame markers for arithmetic coding."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that ends the data of a scan and, except for the end marker, is followed by the length of a segment."""
_globals_lock = threading.Lock()
_caps: list[int] = []
_cap: int | None = None
_ghostscript: str | bool | None = None


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """A picture ready for preprocessing.

    Attributes:
        stored: mode RGB, 8 bits a channel, as it lies in the file; smaller where its decoder scaled it down.
        turn: the operation that makes it upright; None if it is.
        width: pixels of the upright picture, in full size.
        height: likewise.
        format: Pillow's name of the file's format; None for a picture that was made in memory.
    """

    stored: Image.Image
    turn: Image.Transpose | None
    width: int
    height: int
    format: str | None = None

    @property
    def rgb(self) -> Image.Image:
        """It upright, turned at each call."""
        return self.stored if self.turn is None else self.stored.transpose(self.turn)

    def make_thumbnail(self, side: int) -> Image.Image:
        """Return it scaled down to at most `side` pixels in width and height."""
        scale = min(1, side / max(self.stored.size))
        width, height = (max(1, round(length * scale)) for length in self.stored.size)
        small = self.stored.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return small if self.turn is None else small.transpose(self.turn)


def decode(
    file: BinaryIO,
    *,
    exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: Sequence[str] = _DEFAULT_FORMATS,
    least_side: int | None = None,
) -> DecodedPicture:
    """Decode the first frame of a picture.

    Args:
        file: binary and seekable.
        exif: whether to apply the EXIF orientation.
        max_pixels: the largest width x height that is decoded.
        formats: the formats to try, by Pillow's names; no other decoder reads the file.
        least_side: pixels of the shorter side that are enough. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size,
            which takes less time, if it keeps as many. None for all pixels.

    Raises:
        PictureError: decode, truncated, too_large or unsupported.
        MemoryError: the picture does not fit into memory.
    """
    with _translate_pillow_errors(file, max_pixels):
        if not file.read(1):
            raise PictureError(FailureCode.TRUNCATED, "is empty (0 bytes)")
        file.seek(0)
        with _guard_pillow_globals(max_pixels):
            _allow_long_texts()
            return _decode(file, exif, max_pixels, formats, least_side)


def read_size(file: BinaryIO, formats: Sequence[str]) -> tuple[int, int]:
    """Return (width, height) in pixels by a picture's header.

    Args:
        file: binary and seekable.
        formats: the formats to try, by Pillow's names.

    Raises:
        PictureError: the header cannot be read.
        MemoryError: it does not fit into memory.
    """
    if size := _read_webp_size(file.read(_WEBP_HEAD_BYTES)):
        return size
    file.seek(0)
    with (
        _translate_pillow_errors(file, DEFAULT_MAX_PIXELS),
        _guard_pillow_globals(DEFAULT_MAX_PIXELS),
        Image.open(file, formats=_list_available(formats, file.read(_PREFIX_BYTES))) as picture,
    ):
        return picture.size


def _read_webp_size(head: bytes) -> tuple[int, int] | None:
    """Return the size of a WebP file, which Pillow opens only if there is memory for its pixels; else None."""
    if head[:4] != b"RIFF" or len(head) < _WEBP_HEAD_BYTES:
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None


def decode_image(image: Image.Image, *, exif: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedPicture:
    """Turn a picture that Pillow opened or made into what `decode` makes of its file; the result shares no memory.

    Args:
        image: any mode; the current frame of an animation. It is loaded, if it is not yet.
        exif: whether to apply the EXIF orientation.
        max_pixels: the largest width x height that is accepted.

    Raises:
        PictureError: decode, truncated, too_large or unsupported.
        MemoryError: the picture does not fit into memory.
    """
    with _translate_pillow_errors(None, max_pixels), _guard_pillow_globals(max_pixels):
        _check_size(image, max_pixels)
        decoded = _finish(image, _load(image), exif)
        return replace(decoded, stored=image.copy()) if decoded.stored is image else decoded


def _decode(
    file: BinaryIO, exif: bool, max_pixels: int, formats: Sequence[str], least_side: int | None
) -> DecodedPicture:
    with Image.open(file, formats=_list_available(formats, file.read(_PREFIX_BYTES))) as picture:
        _check_size(picture, max_pixels)
        if picture.format == "PNG":
            _check_png(file)
        full_size = picture.size
        is_jpeg = picture.format in JPEG_FORMATS
        if is_jpeg and least_side is not None:
            _scale_down(picture, least_side)
        orientation = _load(picture)
        if is_jpeg and _is_cut_jpeg(file, picture, full_size):
            raise PictureError(FailureCode.TRUNCATED, "is truncated: its data ends before its last row")
        return _finish(picture, orientation, exif, full_size if is_jpeg else None)


def _scale_down(picture: Image.Image, least_side: int) -> None:
    """Let the decoder of a JPEG that is not loaded yet divide its sides by 2, 4 or 8, down to `least_side` pixels.

    By 8, it uses the mean of a block alone, so that the later scans of a progressive one could be missing unnoticed.
    """
    if "progressive" in picture.info:
        least_side = max(least_side, min(picture.size) // 4)
    picture.draft(None, (least_side, least_side))


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    pixels = picture.width * picture.height
    if not pixels:
        raise PictureError(FailureCode.DECODE, f"has no pixels ({picture.width}x{picture.height})")
    if pixels > max_pixels:
        raise PictureError(FailureCode.TOO_LARGE, f"{picture.width}x{picture.height} is over max_pixels={max_pixels}")


def _load(picture: Image.Image) -> int:
    """Load the pixels, and return the EXIF orientation that they had before: a TIFF is turned by loading it."""
    if picture.format == "PNG":
        _scale_transparent_level(picture)
    if _is_misread_by_pillow(_tiff_tags(picture)):
        raise PictureError(
            FailureCode.UNSUPPORTED,
            "is an uncompressed TIFF with 16-bit channels in separate planes, which is not decoded here",
        )
    orientation = _read_orientation(picture)
    picture.load()
    return orientation


def _finish(
    picture: Image.Image, orientation: int, exif: bool, full_size: tuple[int, int] | None = None
) -> DecodedPicture:
    """Return a loaded picture as RGB; `full_size` is its size before its decoder scaled it down."""
    tags = _tiff_tags(picture)
    stored = _to_rgb(_normalize_tiff_grey(picture, tags) if tags else picture)
    turn = _find_turn(picture, orientation, exif)
    width, height = stored.size if full_size is None else full_size
    if turn is not None and orientation >= _FIRST_SIDEWAYS:
        width, height = height, width
    return DecodedPicture(stored, turn, width, height, picture.format)


def _tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    return getattr(picture, "tag_v2", {})


def _list_available(formats: Sequence[str], prefix: bytes) -> list[str]:
    """Return the formats with a decoder; HEIF's is in a package of its own, imported when a file needs it."""
    if "HEIF" in formats and "HEIF" not in Image.OPEN and _is_heif(prefix):
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    return [name for name in formats if name != "HEIF" or name in Image.OPEN]


@contextlib.contextmanager
def _guard_pillow_globals(max_pixels: int) -> Iterator[None]:
    """While any thread decodes, replace Pillow's limit of pixels by ours and disable its use of Ghostscript.

    Both are globals of the whole program. The limit is needed where a decoder finds a larger size than the header's;
    Pillow raises from twice its value on. Without Ghostscript no decoder can start a program, whatever a file makes
    Pillow open.
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
    """Let Pillow read long texts and colour profiles of a PNG; it still limits all texts of a file together."""
    from PIL import PngImagePlugin  # opening a picture imports it anyway

    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MAX_PNG_TEXT)


def _check_png(file: BinaryIO) -> None:
    """Verify the checksums of all chunks, which decoding does not: a tail of zeros would go unnoticed."""
    position = file.tell()
    file.seek(0)
    Image.open(file, formats=["PNG"]).verify()  # reads no further than the last chunk
    file.seek(position)


def _scale_transparent_level(picture: Image.Image) -> None:
    """Scale the transparent level to 8 bits like the pixels; Pillow leaves it as it is stored."""
    level = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)
    stored = tiles[0].args if tiles else None
    if isinstance(level, int) and stored in _LEVEL_STEPS:
        picture.info["transparency"] = level * _LEVEL_STEPS[stored]
    elif isinstance(level, tuple) and stored == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in level)


def _is_misread_by_pillow(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow would read the two bytes of each value of a TIFF as two pixels."""
    apart = tags.get(_COMPRESSION_TAG, _UNCOMPRESSED) == _UNCOMPRESSED and tags.get(_PLANAR_TAG) == _CHANNELS_APART
    return apart and 16 in tags.get(_BITS_TAG, ())


def _is_cut_jpeg(file: BinaryIO, picture: Image.Image, full_size: tuple[int, int]) -> bool:
    """Whether a JPEG's data ends early although an end marker or zeros follow; the decoder invents the missing pixels.

    Bytes inserted after the data change the pixels of a cut picture, but not those of a whole one. Only a picture that
    may be cut is decoded again, as large as before: one that ends in zeros, is progressive, or may lack its last block.
    """
    divisor = round(max(full_size) / max(picture.size))
    least_side = min(full_size) // divisor
    may_be_cut = "progressive" in picture.info or _may_lack_last_block(picture, divisor)
    file.seek(-len(_ZEROS), io.SEEK_END)
    if not may_be_cut and file.read() != _ZEROS:
        return False
    file.seek(0)
    data = file.read(_MAX_PROBED_BYTES)
    markers = _find_markers(data)
    if markers.keys() & _ARITHMETIC:  # its decoder reads past the data of a whole picture, too
        return False
    if _END in markers:
        before = data[: markers[_END]].rstrip(b"\xff")
        probe = before + _PROBE + data[len(before) :]
        return may_be_cut and _has_other_pixels(probe, picture, least_side)
    before = data[: len(data.rstrip(b"\0")) + 1]  # one zero may be data
    return data.endswith(_ZEROS) and _has_other_pixels(before + _PROBE + b"\xff\xd9", picture, least_side)


def _may_lack_last_block(picture: Image.Image, divisor: int) -> bool:
    """Whether the last block looks as if its data were missing.

    Decoders give one grey to blocks without data, and a flat colour to some for which the data ends within. Every fifth
    photo has a flat last block, too. In a large picture, which takes long to be decoded again, only the grey counts.
    """
    right, bottom = picture.width - 1, picture.height - 1
    if picture.width * picture.height * divisor**2 > _LARGE_PIXELS:
        last = np.array(picture.getpixel((right, bottom)), np.int16)
        return bool(np.abs(last - _GREY_WITHOUT_DATA).max() <= _FLAT_LEVELS)
    side = 8 // divisor
    last_block = picture.crop((right // side * side, bottom // side * side, right + 1, bottom + 1)).convert("L")
    return bool(np.ptp(np.asarray(last_block)) <= _FLAT_LEVELS)


def _has_other_pixels(data: bytes, picture: Image.Image, least_side: int) -> bool:
    """Whether a JPEG, scaled down likewise, has other pixels than `picture`; False if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as other:
            _scale_down(other, least_side)
            return other.tobytes() != picture.tobytes()
    except MemoryError:
        raise
    except Exception:
        return False


def _find_markers(data: bytes) -> dict[int, int]:
    """Return the position of the last marker of each kind in a JPEG's first picture.

    Anything may follow the end marker: another picture in an MPO, for example.
    """
    at, markers = 2, {}
    while _END not in markers and (found := _JPEG_MARKER.search(data, at)) is not None:
        markers[found[0][1]] = found.start()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return markers


def _read_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if the metadata cannot be read."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata raises almost anything; the pixels may be fine
        return 1


def _find_turn(picture: Image.Image, orientation: int, exif: bool) -> Image.Transpose | None:
    """Return what makes the picture upright or, without exif, as stored; Pillow has turned a TIFF upright already."""
    if picture.format == "TIFF":
        return None if exif else _UPRIGHT.get(_INVERSE.get(orientation, orientation))
    return _UPRIGHT.get(orientation) if exif else None


@contextlib.contextmanager
def _translate_pillow_errors(file: BinaryIO | None, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into a PictureError; plugins raise almost anything on hostile bytes."""
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        pixels = f"{found[0]} pixels are" if found else "is"
        raise PictureError(FailureCode.TOO_LARGE, f"{pixels} over max_pixels={max_pixels}") from error
    except Exception as error:
        if file is not None and is_truncated(file):
            code, message = FailureCode.TRUNCATED, "is truncated: it is shorter than its headers say"
        elif file is not None and isinstance(error, UnidentifiedImageError):
            code, message = _explain_unidentified(file)
        else:
            code, message = _explain_decoder_error(error)
        raise PictureError(code, message) from error


def _explain_decoder_error(error: Exception) -> tuple[FailureCode, str]:
    said = one_line(error)
    if isinstance(error, EOFError) or any(words in said.lower() for words in _SAYS_TRUNCATED):
        return FailureCode.TRUNCATED, f"is truncated: {said}"
    return FailureCode.DECODE, f"cannot be decoded: {said}"


def _explain_unidentified(file: BinaryIO) -> tuple[FailureCode, str]:
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    if prefix.startswith(_PNG_SIGNATURE):  # Pillow does not recognise some damaged ones
        return FailureCode.DECODE, "cannot be decoded: it is damaged after its first bytes"
    if _is_heif(prefix):
        return FailureCode.UNSUPPORTED, "is HEIF, which needs pillow-heif: pip install 'metaformer-cli[heif]'"
    if prefix == GIT_LFS_START:
        return FailureCode.UNSUPPORTED, "is a pointer of Git LFS, not the picture itself: git lfs pull"
    for name in OPTIONAL_FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None  # checks the first bytes only
        if accept is not None and accept(prefix):
            return FailureCode.UNSUPPORTED, f"is {name}, which is decoded only on request: formats={name.lower()}"
    return FailureCode.UNSUPPORTED, "is not a picture in a format that is decoded here"


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS


def _normalize_tiff_grey(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Convert the greys of a TIFF that Pillow leaves as they are stored to 16 bits with black at 0."""
    if picture.mode == "I" and _SIGNED not in tags.get(_SAMPLE_FORMAT_TAG, ()):
        return Image.fromarray(np.asarray(picture).view(np.uint32).clip(0, 65535).astype(np.uint16))
    if picture.mode == "I;16" and 12 in tags.get(_BITS_TAG, ()):
        return Image.fromarray(np.rint(np.asarray(picture) * (65535 / 4095)).astype(np.uint16))
    if picture.mode == "I;16" and tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        return Image.fromarray(65535 - np.asarray(picture))
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
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

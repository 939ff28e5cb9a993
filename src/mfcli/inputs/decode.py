"""From bytes to an upright RGB picture, safely.

Refuses what is damaged, truncated or too large. Resizing and cropping for a model is done in models/preprocess.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from PIL import Image

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.codecs import DEFAULT_FORMATS
from mfcli.inputs.jpeg import JPEG_FORMATS, is_cut_jpeg, prepare_jpeg, read_coding
from mfcli.inputs.pillow import guard_globals, open_picture, translate_errors
from mfcli.inputs.probing import is_filled_up
from mfcli.inputs.rgb import is_misread, scale_transparent_level, to_rgb
from mfcli.settings import DEFAULT_MAX_PIXELS

_DEFAULT_FORMATS = tuple(DEFAULT_FORMATS)
_WEBP_HEAD_BYTES = 30
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
"""The operation that turns a picture upright, by the value of its EXIF orientation."""
_FIRST_SIDEWAYS = 5
"""The first of the orientations that swap width and height."""
_INVERSE = {6: 8, 8: 6}
"""The orientations whose operation is undone by that of another; the others are their own inverse."""


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
            which takes less time, if it keeps as many, or at 1/8 half as many again. None for all pixels.

    Raises:
        PictureError: decode, truncated, too_large or unsupported.
        MemoryError: the picture does not fit into memory.
    """
    with translate_errors(file, max_pixels):
        if not file.read(1):
            raise PictureError(FailureCode.TRUNCATED, "is empty (0 bytes)")
        file.seek(0)
        with guard_globals(max_pixels):
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
        translate_errors(file, DEFAULT_MAX_PIXELS),
        guard_globals(DEFAULT_MAX_PIXELS),
        open_picture(file, formats) as picture,
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
    with translate_errors(None, max_pixels), guard_globals(max_pixels):
        _check_size(image, max_pixels)
        decoded = _finish(image, _load(image), exif)
        return replace(decoded, stored=image.copy()) if decoded.stored is image else decoded


def _decode(
    file: BinaryIO, exif: bool, max_pixels: int, formats: Sequence[str], least_side: int | None
) -> DecodedPicture:
    with open_picture(file, formats) as picture:
        _check_size(picture, max_pixels)
        if picture.format == "PNG":
            _check_png(file)
        full_size = picture.size
        coding = read_coding(file) if picture.format in JPEG_FORMATS else None
        if coding is not None:
            prepare_jpeg(picture, file, coding, least_side)
        orientation = _load(picture)
        if coding is not None and is_cut_jpeg(file, picture, full_size, coding):
            raise PictureError(FailureCode.TRUNCATED, "is truncated: its data ends before its last row")
        if is_filled_up(file, picture):
            raise PictureError(FailureCode.TRUNCATED, "is truncated: it ends in zeros in place of data")
        return _finish(picture, orientation, exif, None if coding is None else full_size)


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    pixels = picture.width * picture.height
    if not pixels:
        raise PictureError(FailureCode.DECODE, f"has no pixels ({picture.width}x{picture.height})")
    if pixels > max_pixels:
        raise PictureError(FailureCode.TOO_LARGE, f"{picture.width}x{picture.height} is over max_pixels={max_pixels}")


def _load(picture: Image.Image) -> int:
    """Load the pixels, and return the EXIF orientation that they had before: a TIFF is turned by loading it."""
    if picture.format == "PNG":
        scale_transparent_level(picture)
    if is_misread(picture):
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
    stored = to_rgb(picture)
    turn = _find_turn(picture, orientation, exif)
    width, height = stored.size if full_size is None else full_size
    if turn is not None and orientation >= _FIRST_SIDEWAYS:
        width, height = height, width
    return DecodedPicture(stored, turn, width, height, picture.format)


def _check_png(file: BinaryIO) -> None:
    """Verify the checksums of all chunks, which decoding does not: a tail of zeros would go unnoticed."""
    position = file.tell()
    file.seek(0)
    Image.open(file, formats=["PNG"]).verify()  # reads no further than the last chunk
    file.seek(position)


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

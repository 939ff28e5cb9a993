"""What only JPEGs have: decoding at a fraction of the size, and data that ends early without an error."""

import io
import re
from typing import BinaryIO

import numpy as np
from PIL import Image

JPEG_FORMATS = frozenset({"JPEG", "MPO"})
"""Formats that their decoder can scale down."""
_FLAT_LEVELS = 3
_GREY_WITHOUT_DATA = 128
_LARGE_PIXELS = 2**20
_MAX_PROBED_BYTES = 2**28
_ZEROS = bytes(16)
_PROBE = bytes(range(1, 255, 4))
"""What is inserted after the data of a JPEG: bytes that decode to different values with any table."""
_END, _ARITHMETIC = 0xD9, {0xC9, 0xCA}
"""The second bytes of a JPEG's end marker, and of the frame markers for arithmetic coding."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that ends the data of a scan and, except for the end marker, is followed by the length of a segment."""


def scale_down(picture: Image.Image, least_side: int) -> None:
    """Let the decoder of a JPEG that is not loaded yet divide its sides by 2, 4 or 8, down to `least_side` pixels.

    By 8, it uses the mean of a block alone, so that the later scans of a progressive one could be missing unnoticed.
    """
    if "progressive" in picture.info:
        least_side = max(least_side, min(picture.size) // 4)
    picture.draft(None, (least_side, least_side))


def is_cut_jpeg(file: BinaryIO, picture: Image.Image, full_size: tuple[int, int]) -> bool:
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
            scale_down(other, least_side)
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

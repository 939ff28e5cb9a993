"""What only JPEGs have: decoding at a fraction of the size, and data that ends early without an error."""

import io
import re
from enum import Enum, auto
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image

from mfcli.inputs.probing import (
    BLOCK,
    FLAT_LEVELS,
    OTHER_DATA,
    ends_in_zeros,
    find_changed_row,
    is_flat_below,
    read_probed,
)

JPEG_FORMATS = frozenset({"JPEG", "MPO"})
"""Formats that their decoder can scale down."""
_GREY_WITHOUT_DATA = 128
_LARGE_PIXELS = 2**20
_PROBE = OTHER_DATA + b"".join(b"\xff%c" % marker + OTHER_DATA for marker in range(0xD0, 0xD8))
"""What is inserted after the data of a JPEG; a restart marker begins each part, as the decoder may wait for one."""
_IMPLIED = bytes(8)
"""Zeros that arithmetic coding leaves out at the end of a scan; there may be more if the last rows are flat."""
_END, _SCAN = 0xD9, 0xDA
_SEQUENTIAL, _ARITHMETIC = (0xC0, 0xC1), (0xC9, 0xCA)
"""The second bytes of a JPEG's markers."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that ends the data of a scan and, except for the end marker, is followed by the length of a segment."""


class Coding(Enum):
    """How the data of a JPEG is coded: with Huffman codes, in one scan or in several, or arithmetically."""

    ONE_SCAN = auto()
    SCANS = auto()
    ARITHMETIC = auto()


def read_coding(file: BinaryIO) -> Coding:
    """Return how the data of a JPEG is coded, by its headers."""
    at, components = 2, 0
    while True:
        file.seek(at)
        segment = file.read(10)
        marker = segment[1] if len(segment) == 10 else _END
        if marker in _ARITHMETIC:
            return Coding.ARITHMETIC
        if marker in _SEQUENTIAL:
            components = segment[9]
        if marker in (_SCAN, _END):
            return Coding.ONE_SCAN if segment[4:5] == bytes([components]) else Coding.SCANS
        at += 1 if marker == 0xFF else 2 + int.from_bytes(segment[2:4], "big")


def prepare_jpeg(picture: Image.Image, file: BinaryIO, coding: Coding, least_side: int | None) -> None:
    """Prepare a JPEG that is not loaded yet.

    Args:
        picture: the JPEG.
        file: its bytes, seekable.
        coding: how its data is coded.
        least_side: pixels of the shorter side that are enough; None for all.
    """
    if coding is Coding.ARITHMETIC:  # its decoder cannot wait for more data
        picture.decodermaxblock = file.seek(0, io.SEEK_END)  # type: ignore[attr-defined]
    if least_side is not None:
        _scale_down(picture, least_side)


def _scale_down(picture: Image.Image, least_side: int) -> None:
    """Let the decoder of a JPEG that is not loaded yet divide its sides by 2, 4 or 8, down to `least_side` pixels.

    By 8, it uses the mean of a block alone. That is done where it leaves half as many pixels again, because it changes
    more answers, and not for progressive ones, whose later scans could be missing unnoticed.
    """
    shorter = min(picture.size)
    if "progressive" in picture.info or shorter < 8 * 1.5 * least_side:
        least_side = max(least_side, shorter // 4)
    picture.draft(None, (least_side, least_side))


def is_cut_jpeg(file: BinaryIO, picture: Image.Image, full_size: tuple[int, int], coding: Coding) -> bool:
    """Return whether a JPEG's data ends early although an end marker or zeros follow.

    Its decoder invents the missing pixels. Bytes inserted after the data change the pixels of a cut picture, but not
    those of a whole one. Only a picture that may be cut is decoded again, as large as before: one that ends in zeros,
    has several scans, is coded arithmetically, or may lack its last block.

    Args:
        file: its bytes, seekable.
        picture: the JPEG, loaded.
        full_size: its width and height in pixels before its decoder scaled it down.
        coding: how its data is coded.
    """
    divisor = round(max(full_size) / max(picture.size))
    may_be_cut = coding is not Coding.ONE_SCAN or _may_lack_last_block(picture, divisor)
    if not may_be_cut and not ends_in_zeros(file):
        return False
    data = read_probed(file)
    end = _find_end(data)
    if not may_be_cut and end is not None:
        return False
    if end is not None:
        before, after = data[:end].rstrip(b"\xff"), data[end:]
    else:
        before, after = data[: len(data.rstrip(b"\0")) + 1], b"\xff\xd9"  # one zero may be data
    implied = _IMPLIED if coding is Coding.ARITHMETIC else b""
    prepare = partial(prepare_jpeg, coding=coding, least_side=min(full_size) // divisor)
    changed = find_changed_row(before + implied + _PROBE + after, picture, prepare)
    if changed is None or (coding is Coding.ARITHMETIC and is_flat_below(changed + BLOCK, picture)):
        return False
    return changed < picture.height


def _may_lack_last_block(picture: Image.Image, divisor: int) -> bool:
    """Whether the last block looks as if its data were missing.

    Decoders give one grey to blocks without data, and a flat colour to some for which the data ends within. Every fifth
    photo has a flat last block, too. In a large picture, which takes long to be decoded again, only the grey counts.
    """
    right, bottom = picture.width - 1, picture.height - 1
    if picture.width * picture.height * divisor**2 > _LARGE_PIXELS:
        last = np.array(picture.getpixel((right, bottom)), np.int16)
        return bool(np.abs(last - _GREY_WITHOUT_DATA).max() <= FLAT_LEVELS)
    side = 8 // divisor
    last_block = picture.crop((right // side * side, bottom // side * side, right + 1, bottom + 1)).convert("L")
    return bool(np.ptp(np.asarray(last_block)) <= FLAT_LEVELS)


def _find_end(data: bytes) -> int | None:
    """Return the position of the end marker of a JPEG's first picture.

    Anything may follow it: another picture in an MPO, for example.
    """
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        if found[0][1] == _END:
            return found.start()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return None

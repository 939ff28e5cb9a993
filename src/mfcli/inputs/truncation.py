"""Whether a file is shorter than its headers say, for formats whose decoders do not tell truncation from other damage.

It only makes the code of an error more exact; nothing that can be decoded is refused. Of files cut at 1 % to 99 %
of their length, Pillow reports none as truncated for WebP, AVIF, JPEG 2000 and compressed TIFF, but as damaged or as no
picture at all; with this module, all 99. PNG, JPEG, GIF, BMP and uncompressed TIFF need no help and are not looked at.
"""

import io
import struct
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAX_BOXES = 1000
_MAX_STRIPS = 2**20
_OFFSET_AND_SIZE_TAGS = ((273, 279), (324, 325))
"""The tags of a TIFF's strips and of its tiles: where each begins, and its bytes."""
_TIFF_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by the type of a TIFF's entry; 1 for any other."""


def is_truncated(file: BinaryIO) -> bool:
    """Return whether a WebP, AVIF, HEIF, JPEG 2000 or TIFF file lacks its end; False for any other format.

    Args:
        file: seekable, at any position.
    """
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > length
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _find_tiff_end(file, "<" if head[:1] == b"I" else ">", length) > length
        if head[4:8] in (b"ftyp", b"jP  "):  # AVIF, HEIF and JPEG 2000 consist of boxes
            return _find_last_box_end(file, length) > length
        if head[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 without boxes
            file.seek(-2, io.SEEK_END)
            return file.read(2) != b"\xff\xd9"
    except Exception:  # hostile bytes; the decoder's own error will do
        pass
    return False


def _find_last_box_end(file: BinaryIO, length: int) -> int:
    """Return where the last box of an ISO media file should end; 0 for one that extends to the end of the file."""
    at = 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if not header:
            return at
        if len(header) < 8:
            return at + 8
        if not size:
            return 0
        at += size
        if at > length:
            return at
    return 0


def _find_tiff_end(file: BinaryIO, order: str, length: int) -> int:
    """Return where the last byte should be that a TIFF's first directory refers to.

    Args:
        file: the TIFF.
        order: the byte order, as struct writes it.
        length: bytes that the file has; once the end lies beyond it, the rest is not read.
    """
    file.seek(4)
    (begin,) = struct.unpack(f"{order}I", file.read(4))
    file.seek(begin)
    directory = file.read(2)
    if len(directory) < 2:
        return length + 1
    (count,) = struct.unpack(f"{order}H", directory)
    end: int = begin + 2 + 12 * count
    if end > length:
        return end
    entries = _read_entries(file.read(12 * count), order, begin + 2)
    end = max(end, *(at + number * size for at, number, size in entries.values()))
    if end > length:
        return end
    for offset_tag, size_tag in _OFFSET_AND_SIZE_TAGS:
        offsets, sizes = (_read_numbers(file, order, *entries.get(tag, (0, 0, 4))) for tag in (offset_tag, size_tag))
        strips = min(len(offsets), len(sizes))
        end = max(end, int((offsets[:strips] + sizes[:strips]).max(initial=0)))
    return end


def _read_entries(data: bytes, order: str, begin: int) -> dict[int, tuple[int, int, int]]:
    """Return, by tag, where in the file its values begin, how many there are, and the bytes of one.

    Args:
        data: the entries of a directory.
        order: the byte order, as struct writes it.
        begin: where in the file they begin.
    """
    entries = {}
    for index, (tag, kind, number, offset) in enumerate(struct.iter_unpack(f"{order}HHII", data)):
        size = _TIFF_VALUE_BYTES.get(kind, 1)
        entries[tag] = (offset if number * size > 4 else begin + 12 * index + 8, number, size)  # up to 4 bytes inline
    return entries


def _read_numbers(file: BinaryIO, order: str, at: int, number: int, size: int) -> NDArray[np.uint64]:
    file.seek(at)
    return np.frombuffer(file.read(min(number, _MAX_STRIPS) * size), f"{order}u{size}").astype(np.uint64)

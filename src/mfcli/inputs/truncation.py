"""Whether a file is shorter than its headers say, for the formats whose decoders do not tell that from other damage.

It only makes an error more exact: nothing is refused that a decoder takes.
"""

import io
import struct
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_MAX_BOXES = 1000
_MAX_STRIPS = 2**20
_MAX_CHUNKS = 2**16
_PNG_END = b"IEND\xaeB`\x82"
_TAIL_BYTES = 2**16
"""Where a PNG's end is looked for first: the lengths of its chunks may be what is damaged."""
_STRIPS = ((273, 279), (324, 325))
"""The tags of where the strips, or the tiles, of a TIFF begin, and of their bytes."""
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by the type of a TIFF's entry; 1 for any other."""


def ends_early(file: BinaryIO) -> bool:
    """Return whether a PNG, WebP, TIFF, AVIF, HEIF or JPEG 2000 file lacks its end; False for any other.

    Args:
        file: seekable; where it stands does not matter.
    """
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > length
        if head[:4] == b"\x89PNG":
            file.seek(max(0, length - _TAIL_BYTES))
            return _PNG_END not in file.read() and _png_end(file) > length
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_end(file, "<" if head[:1] == b"I" else ">", length) > length
        if head[4:8] in (b"ftyp", b"jP  "):  # AVIF, HEIF and JPEG 2000 are made of boxes
            return _last_box_end(file, length) > length
        if head[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 without boxes
            file.seek(-2, io.SEEK_END)
            return file.read(2) != b"\xff\xd9"
    except Exception:  # hostile bytes; what the decoder said of them is enough
        pass
    return False


def _png_end(file: BinaryIO) -> int:
    """Where a PNG's last chunk ends by the chunks' own account; anything may follow it."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        at += 12 + int.from_bytes(header[:4], "big")
        if len(header) < 8 or header[4:] == b"IEND":
            return at
    return 0


def _last_box_end(file: BinaryIO, length: int) -> int:
    """Where the last box of an ISO media file ends by its own account; 0 for one that goes on to the end."""
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


def _tiff_end(file: BinaryIO, order: str, length: int) -> int:
    """Where the last byte is that a TIFF's first directory speaks of; `order` is struct's sign of its byte order."""
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
    values: dict[int, tuple[int, int, int]] = {}  # where those of a tag begin, how many there are, bytes of one
    for number, entry in enumerate(struct.iter_unpack(f"{order}HHII", file.read(12 * count))):
        tag, kind, how_many, place = entry
        size = _TIFF_BYTES.get(kind, 1)
        inside = begin + 2 + 12 * number + 8
        values[tag] = (place if how_many * size > 4 else inside, how_many, size)
    end = max(end, *(at + how_many * size for at, how_many, size in values.values()))
    if end > length:
        return end

    def numbers(tag: int) -> NDArray[np.uint64]:
        at, how_many, size = values.get(tag, (0, 0, 4))
        file.seek(at)
        return np.frombuffer(file.read(min(how_many, _MAX_STRIPS) * size), f"{order}u{size}").astype(np.uint64)

    for places, sizes in _STRIPS:
        begins, lengths = numbers(places), numbers(sizes)
        strips = min(len(begins), len(lengths))
        end = max(end, int((begins[:strips] + lengths[:strips]).max(initial=0)))
    return end

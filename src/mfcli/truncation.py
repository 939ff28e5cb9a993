"""Whether a file is shorter than its headers say, for the formats whose decoders do not tell that from other damage.

It only makes an error more exact: nothing is refused that a decoder takes.
"""

import io
from typing import BinaryIO, Literal

_MAX_BOXES = 1000
_MAX_ENTRIES = 1000
_STRIPS = ((273, 279), (324, 325))
"""The tags of where the strips, or the tiles, of a TIFF begin, and of their bytes."""
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by the type of a TIFF's entry; 1 for any other."""


def ends_early(file: BinaryIO) -> bool:
    """Return whether a WebP, TIFF, AVIF or JPEG 2000 file lacks its end; False for any other.

    Args:
        file: seekable; where it stands does not matter.
    """
    try:
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > length
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_end(file, "little" if head[:1] == b"I" else "big", length) > length
        if head[4:8] in (b"ftyp", b"jP  "):  # AVIF and JPEG 2000 are made of boxes
            return _last_box_end(file, length) > length
        if head[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 without boxes
            file.seek(-2, io.SEEK_END)
            return file.read(2) != b"\xff\xd9"
    except Exception:  # hostile bytes; what the decoder said of them is enough
        pass
    return False


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


def _tiff_end(file: BinaryIO, order: Literal["little", "big"], length: int) -> int:
    """Where the last byte is that a TIFF's first directory speaks of."""

    def numbers(at: int, count: int, size: int) -> list[int]:
        file.seek(at)
        data = file.read(count * size)
        return [int.from_bytes(data[i : i + size], order) for i in range(0, len(data), size)]

    (directory,) = numbers(4, 1, 4)
    if directory + 2 > length:
        return directory + 2
    (count,) = numbers(directory, 1, 2)
    ends = [directory + 2 + 12 * count]
    values: dict[int, list[int]] = {}
    for entry in range(directory + 2, min(ends[0], length - 11), 12)[:_MAX_ENTRIES]:
        tag, kind = numbers(entry, 2, 2)
        (how_many,) = numbers(entry + 4, 1, 4)
        size = _TIFF_BYTES.get(kind, 1)
        at = entry + 8 if how_many * size <= 4 else numbers(entry + 8, 1, 4)[0]
        ends.append(at + how_many * size)
        if any(tag in pair for pair in _STRIPS) and ends[-1] <= length:
            values[tag] = numbers(at, how_many, size)
    for begins, sizes in _STRIPS:
        ends += [at + size for at, size in zip(values.get(begins, ()), values.get(sizes, ()), strict=False)]
    return max(ends)

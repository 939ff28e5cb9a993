"""Whether a picture's data is whole, by decoding it again with other data in place of what may be missing.

For formats whose decoders invent the pixels for missing data instead of reporting it.
"""

import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops

OTHER_DATA = bytes(range(1, 255, 4))
"""Bytes that decode to different values with any table."""
_MAX_PROBED_BYTES = 2**28
ZEROS = bytes(16)
_FORMATS = frozenset({"WEBP", "AVIF", "HEIF", "JPEG2000"})
_MIN_SHARE = 1 / 32
BLOCK = 16
"""Rows that are decoded together."""
FLAT_LEVELS = 3


def ends_in_zeros(file: BinaryIO) -> bool:
    """Return whether a file ends in so many zeros that they may be in place of its data."""
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, size_bytes - len(ZEROS)))
    return file.read() == ZEROS


def read_probed(file: BinaryIO) -> bytes:
    """Return a file's bytes, up to the most that are decoded again."""
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    return file.read(min(size_bytes, _MAX_PROBED_BYTES))  # memory is taken for as many as are asked for


def is_filled_up(file: BinaryIO, picture: Image.Image) -> bool:
    """Return whether zeros are in place of a picture's last data.

    Encoders also write many zeros at the end of a picture that is flat there, so such pictures are taken to be whole.

    Args:
        file: its bytes, seekable.
        picture: the picture, loaded; not a JPEG, see `is_cut_jpeg`.
    """
    if picture.format not in _FORMATS or not ends_in_zeros(file):
        return False
    data = read_probed(file)
    if picture.format == "WEBP":
        data = data[: 8 + int.from_bytes(data[4:8], "little")]  # anything may follow
    before = data.rstrip(b"\0")
    share = 1 - len(before) / len(data)
    if share < _MIN_SHARE:
        return False
    other = OTHER_DATA * (len(data) // len(OTHER_DATA) + 1)
    changed = find_changed_row((before + other)[: len(data)], picture)
    if changed is None and picture.format != "WEBP":  # the zeros may be in a part without pixels
        return False
    first_flat = int(picture.height * (1 - share / 2)) if changed is None else changed + BLOCK
    return changed != picture.height and not is_flat_below(first_flat, picture)


def find_changed_row(
    data: bytes, picture: Image.Image, prepare: Callable[[Image.Image, BinaryIO], None] = lambda *_: None
) -> int | None:
    """Return the first row in which a picture is another with other data.

    Args:
        data: all of it.
        picture: the picture, loaded.
        prepare: called before the pixels of the other one are loaded.

    Returns:
        The height if all rows are the same; None if the other one cannot be decoded.
    """
    file = io.BytesIO(data)
    formats = ["JPEG" if picture.format == "MPO" else str(picture.format)]
    try:
        with Image.open(file, formats=formats) as other:
            prepare(other, file)
            changed = ImageChops.difference(other, picture).getbbox(alpha_only=False)
    except MemoryError:
        raise
    except Exception:
        return None
    return changed[1] if changed else picture.height


def is_flat_below(row: int, picture: Image.Image) -> bool:
    """Return whether a picture is flat from a row on; True beyond its last."""
    if row >= picture.height:
        return True
    ranges = np.reshape(picture.crop((0, row, *picture.size)).getextrema(), (-1, 2))
    return bool(np.ptp(ranges, axis=1).max() <= FLAT_LEVELS)

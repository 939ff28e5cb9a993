"""Truncated files are recognised in every format, and no complete file is taken for one."""

import io
import struct
from typing import Any

import pytest
from PIL import Image

from deterministic import picture
from mfcli.inputs.truncation import is_truncated

FORMATS = [
    ("WEBP", {}),
    ("AVIF", {}),
    ("JPEG2000", {}),
    ("JPEG2000", {"no_jp2": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),  # these have their directory at the end
    ("TIFF", {"compression": "jpeg"}),
    ("TIFF", {"compression": "packbits"}),
]


def encoded(format: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture(300, 200).save(file, format, **how)
    return file.getvalue()


@pytest.mark.parametrize(("format", "how"), FORMATS)
def test_truncation_at_any_point_is_recognised(format: str, how: dict[str, Any]) -> None:
    data = encoded(format, **how)
    Image.open(io.BytesIO(data)).load()
    assert not is_truncated(io.BytesIO(data))
    for cut in (2, 20, 50, 200, len(data) // 2, len(data) * 9 // 10):
        assert is_truncated(io.BytesIO(data[:-cut])), cut


def test_a_tiff_with_its_directory_first() -> None:
    strips = [(60, 6), (90, 10)]  # offset and bytes of each
    for order in ("little", "big"):

        def number(value: int, size: int, order: Any = order) -> bytes:
            return value.to_bytes(size, order)

        def entry(tag: int, count: int, value: int, number: Any = number) -> Any:
            return number(tag, 2) + number(4, 2) + number(count, 4) + number(value, 4)

        entries = entry(273, 2, 8 + 2 + 24 + 4) + entry(279, 2, 8 + 2 + 24 + 4 + 8)
        arrays = b"".join(number(place, 4) for place, _ in strips) + b"".join(number(n, 4) for _, n in strips)
        data = (b"II" if order == "little" else b"MM") + number(42, 2) + number(8, 4) + number(2, 2) + entries
        data = (data + number(0, 4) + arrays).ljust(100, b"x")
        assert not is_truncated(io.BytesIO(data))
        assert is_truncated(io.BytesIO(data[:-1]))


@pytest.mark.parametrize(
    "box",
    [
        (8).to_bytes(4) + b"mdat",
        bytes(4) + b"mdatAAAA",  # extends to the end of the file
        (1).to_bytes(4) + b"mdat" + (20).to_bytes(8) + b"AAAA",
    ],
)
def test_boxes(box: bytes) -> None:
    whole = (16).to_bytes(4) + b"ftypmp42mp42" + box
    assert not is_truncated(io.BytesIO(whole))
    if any(box[:4]):
        assert is_truncated(io.BytesIO(whole[:-1]))


@pytest.mark.parametrize(
    "data",
    [
        (16).to_bytes(4) + b"ftypmp42mp42" + (1).to_bytes(4) + b"mdat" + b"\xff" * 8,
        (16).to_bytes(4) + b"ftypmp42mp42" + 2000 * ((1).to_bytes(4) + b"free" + (0).to_bytes(8)),
        b"II*\0" + b"\xff" * 4,
        b"II*\0" + (8).to_bytes(4, "little") + b"\xff" * 2000,
        b"MM\0*",
        b"\xff\x4f\xff\x51",
        b"",
    ],
)
def test_hostile_headers_raise_nothing(data: bytes) -> None:
    assert is_truncated(io.BytesIO(data)) in (True, False)


def test_repeated_tags_of_a_directory_are_read_once() -> None:
    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.read_bytes += len(data)
            return data

    strips = struct.pack("<HHII", 273, 4, 100_000, 8 + 2 + 12_000)
    file = Counting(struct.pack("<4sIH", b"II*\0", 8, 1000) + 1000 * strips + bytes(400_000))
    assert not is_truncated(file)
    assert file.read_bytes < 500_000

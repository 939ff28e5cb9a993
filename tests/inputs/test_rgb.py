"""The RGB of each kind of picture."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deterministic import picture
from encoding import encoded, failure_of, in_any_format, pixels_of
from mfcli.errors import FailureCode
from mfcli.inputs.decode import decode


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_opaque_pictures_equal_pillows_conversion(mode: str) -> None:
    image = picture(40, 30, mode)
    format = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    file = encoded(image, format)
    with Image.open(file) as opened:
        expected = np.asarray(opened.convert("RGB"))
    file.seek(0)
    assert np.array_equal(pixels_of(decode(file)), expected)


def test_sixteen_bit_grey_is_scaled_by_257() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for format in ("PNG", "TIFF"):
        grey = pixels_of(decode(encoded(Image.fromarray(values), format)))[..., 0]
        assert np.array_equal(grey, np.arange(256).reshape(16, 16))
    assert pixels_of(decode(encoded(Image.fromarray(np.full((2, 2), 65535, np.uint16)))))[0, 0].tolist() == [255] * 3


def test_integer_grey_is_scaled_by_257_and_clipped() -> None:
    values = np.array([[0, 257, 65535], [70_000, -5, 300]], np.int32)
    grey = pixels_of(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert grey.tolist() == [[0, 1, 255], [255, 0, 1]]


def test_white_is_zero_in_some_sixteen_bit_greys() -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    for compression in (None, "tiff_lzw"):
        file = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0}, compression=compression)
        assert pixels_of(decode(file))[0, :, 0].tolist() == [255, 254, 0]


def tiff(width: int, pixels: bytes, tags: dict[int, int]) -> io.BytesIO:
    """A TIFF of one row, with a strip for each channel."""
    channels = tags.get(277, 1)
    size = len(pixels) // channels
    values = {256: [width], 257: [1], 259: [1], 262: [1], 278: [1]} | {tag: [value] for tag, value in tags.items()}
    values |= {273: [8 + size * number for number in range(channels)], 279: [size] * channels}
    data, entries = pixels, b""
    for tag, numbers in sorted(values.items()):
        place = 8 + len(data)
        if len(numbers) > 1:
            data += struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHII", tag, 4, len(numbers), place if len(numbers) > 1 else numbers[0])
    end = struct.pack("<H", len(values)) + entries + bytes(4)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + end)


def test_twelve_bit_grey_is_scaled_by_its_range() -> None:
    file = tiff(4, bytes.fromhex("000001800fff"), {258: 12})
    assert pixels_of(decode(file))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_unsigned_integer_grey_does_not_wrap() -> None:
    values = [0, 257, 65535, 70_000, 2**31 - 1, 2**31, 2**32 - 1]
    file = tiff(len(values), struct.pack("<7I", *values), {258: 32})
    assert pixels_of(decode(file))[0, :, 0].tolist() == [0, 1, 255, 255, 255, 255, 255]


def test_sixteen_bit_channels_apart_are_refused() -> None:
    rgb = {258: 16, 262: 2, 277: 3, 284: 2}
    error = failure_of(tiff(2, struct.pack("<6H", *range(0, 60_000, 10_000)), rgb).getvalue())
    assert error.code is FailureCode.UNSUPPORTED
    assert error.message == "is an uncompressed TIFF with 16-bit channels in separate planes, which is not decoded here"
    assert pixels_of(decode(tiff(2, bytes(range(6)), rgb | {258: 8})))[0].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_float_grey_is_stretched_over_its_range() -> None:
    values = np.array([[-1, 0, 1], [np.nan, np.inf, -np.inf]], np.float32)
    grey = pixels_of(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert grey.tolist() == [[0, 128, 255], [0, 255, 0]]
    constant = encoded(Image.fromarray(np.full((2, 2), 7, np.float32)), "TIFF")
    assert not pixels_of(decode(constant)).any()


def test_transparency_is_composited_on_white() -> None:
    rgba = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (200, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 51))
    assert pixels_of(decode(encoded(rgba)))[0].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    grey_alpha = Image.new("LA", (1, 1), (0, 0))
    assert pixels_of(decode(encoded(grey_alpha)))[0, 0].tolist() == [255, 255, 255]


def bitmap_with_alpha(rgba: Image.Image) -> io.BytesIO:
    pixels = rgba.tobytes("raw", "BGRA", 0, -1)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 56, *rgba.size, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    return io.BytesIO(struct.pack("<2sIII", b"BM", 70 + len(pixels), 0, 70) + info + masks + pixels)


@pytest.mark.parametrize("format", ["BMP", "TGA"])
def test_alpha_that_is_zero_everywhere_is_ignored(format: str) -> None:
    for alpha, seen in ((0, [[200, 0, 0], [200, 0, 0]]), (255, [[200, 0, 0], [255, 255, 255]])):
        rgba = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
        rgba.putpixel((0, 0), (200, 0, 0, alpha))
        file = bitmap_with_alpha(rgba) if format == "BMP" else encoded(rgba, format)
        assert pixels_of(in_any_format(file))[0, :2].tolist() == seen


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    transparent: Any = (0, 0, 0) if mode == "RGB" else 0
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 1)
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
    found = pixels_of(decode(encoded(image, transparency=transparent)))[0].tolist()
    assert found == [[255, 255, 255], {"P": [40, 50, 60], "L": [1, 1, 1], "RGB": [9, 9, 9]}[mode]]


def test_a_transparent_level_of_sixteen_bit_grey_is_white() -> None:
    file = io.BytesIO(sixteen_bit_png_with_transparent_level())
    assert pixels_of(decode(file))[0].tolist() == [[255] * 3, [2] * 3]


def sixteen_bit_png_with_transparent_level() -> bytes:
    import struct

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    body = zlib.compress(b"\0" + struct.pack(">HH", 257, 514))
    chunks = (chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", 257)), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_lab_is_converted() -> None:
    lab = Image.frombytes("LAB", (1, 1), bytes([255, 0, 0]))
    assert pixels_of(decode(encoded(lab, "TIFF")))[0, 0].min() >= 250


def grey_png(bits: int, colours: int, transparent: bytes, pixels: bytes) -> io.BytesIO:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 1, bits, 2 if colours == 3 else 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))


@pytest.mark.parametrize(
    ("bits", "colours", "level", "pixels", "seen"),
    [
        (1, 1, 1, b"\x80", [255, 0]),
        (1, 1, 0, b"\x80", [255, 255]),
        (2, 1, 1, b"\x60\0", [255, 170]),
        (4, 1, 3, b"\x34\0\0\0", [255, 68]),
        (8, 1, 3, b"\3\4" + bytes(6), [255, 4]),
        (16, 1, 0x1234, b"\x12\x34\x40\x40" + bytes(12), [255, 64]),
        (16, 3, 0x1234, b"\x12\x34" * 3 + b"\x40\x40" * 3 + bytes(36), [255, 64]),
        (16, 3, 0x0012, b"\x12\0" * 3 + b"\x40\x40" * 3 + bytes(36), [18, 64]),
    ],
)
def test_a_transparent_level_is_white(bits: int, colours: int, level: int, pixels: bytes, seen: list[int]) -> None:
    file = grey_png(bits, colours, struct.pack(">H", level) * colours, pixels)
    assert pixels_of(decode(file))[0, :2, 0].tolist() == seen

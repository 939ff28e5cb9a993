"""Decoding: the RGB of each kind of picture, and the code of each refusal."""

import base64
import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from deterministic import picture
from mfcli.errors import FailureCode, PictureError, UsageError
from mfcli.inputs.codecs import DEFAULT_FORMATS, OPTIONAL_FORMATS, formats_with
from mfcli.inputs.decode import DecodedPicture, decode


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def pixels_of(decoded: DecodedPicture) -> np.ndarray:
    assert decoded.rgb.mode == "RGB"
    assert decoded.rgb.size == (decoded.width, decoded.height)
    return np.asarray(decoded.rgb)


def in_any_format(data: bytes | io.BytesIO, **options: Any) -> DecodedPicture:
    return decode(
        io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats_with(OPTIONAL_FORMATS), **options
    )


def failure_of(data: bytes, **options: Any) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(io.BytesIO(data), **options)
    return caught.value


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
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    body = zlib.compress(b"\0" + struct.pack(">HH", 257, 514))
    chunks = (chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", 257)), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_lab_is_converted() -> None:
    lab = Image.frombytes("LAB", (1, 1), bytes([255, 0, 0]))
    assert pixels_of(decode(encoded(lab, "TIFF")))[0, 0].min() >= 250


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        file = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert np.abs(pixels_of(decode(file))[0, 0].astype(int) - [255, 0, 0]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, format: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(48, 32)
    file = encoded(image, format, exif=exif)
    stored = pixels_of(decode(encoded(image, format)))
    turned = Image.fromarray(stored)
    turned.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(turned))
    assert np.array_equal(pixels_of(decode(file)), upright)
    file.seek(0)
    assert np.array_equal(pixels_of(decode(file, exif=False)), stored)
    assert (upright.shape != stored.shape) == (orientation > 4)


def test_damaged_exif_is_ignored() -> None:
    file = encoded(picture(48, 32), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert pixels_of(decode(file)).shape == (32, 48, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_truncated_anywhere_is_refused(progressive: bool) -> None:
    data = encoded(picture(300, 200), "JPEG", quality=80, progressive=progressive).getvalue()
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        error = failure_of(data[: int(len(data) * share)])
        assert error.code in (FailureCode.TRUNCATED, FailureCode.DECODE), share
    assert failure_of(data[: len(data) // 2]).code is FailureCode.TRUNCATED


@pytest.mark.parametrize("corner", ["busy", "flat"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
def test_a_truncated_jpeg_with_an_end_marker_is_refused(options: dict[str, Any], corner: str) -> None:
    image = picture(300, 200)
    if corner == "flat":
        image.paste("white", (200, 100, 300, 200))
    data = encoded(image, "JPEG", quality=80, **options).getvalue()
    assert decode(io.BytesIO(data)).width == 300
    for share in (0.2, 0.5, 0.8, 0.9):
        error = failure_of(data[: int(len(data) * share)] + b"\xff\xd9")
        assert error.code in (FailureCode.TRUNCATED, FailureCode.DECODE), share


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_a_truncated_jpeg_with_an_end_marker_and_a_trailer_is_refused(format: str) -> None:
    more = {"save_all": True, "append_images": [picture(300, 200, name="second")]} if format == "MPO" else {}
    data = encoded(picture(300, 200), format, quality=80, progressive=True, **more).getvalue()
    trailer = encoded(picture(40, 30), "JPEG").getvalue()
    assert decode(io.BytesIO(data + trailer)).width == 300
    for share in (0.1, 0.2, 0.3):
        error = failure_of(data[: int(len(data) * share)] + b"\xff\xd9" + trailer)
        assert error.code in (FailureCode.TRUNCATED, FailureCode.DECODE), share


@pytest.mark.parametrize("progressive", [False, True])
def test_fill_bytes_before_the_end_marker_are_not_a_truncation(progressive: bool) -> None:
    image = picture(300, 200)
    image.paste("white", (200, 100, 300, 200))
    data = encoded(image, "JPEG", quality=80, progressive=progressive).getvalue()
    whole = pixels_of(decode(io.BytesIO(data)))
    assert np.array_equal(pixels_of(decode(io.BytesIO(data[:-2] + b"\xff" * 5 + data[-2:]))), whole)
    assert failure_of(data[: len(data) * 8 // 10] + b"\xff" * 5 + data[-2:]).code is FailureCode.TRUNCATED


def test_a_probe_that_cannot_be_decoded_is_not_a_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(300, 200), "JPEG", progressive=True).getvalue()
    opened = Image.open

    def open_no_other(file: io.BytesIO, **options: Any) -> Image.Image:
        if len(file.getvalue()) != len(data):
            raise OSError("broken data stream when reading image file")
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", open_no_other)
    assert decode(io.BytesIO(data)).width == 300


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_jpeg_with_a_tail_of_zeros_is_refused(progressive: bool, share: float) -> None:
    data = encoded(picture(300, 200), "JPEG", quality=95, subsampling=0, progressive=progressive).getvalue()
    cut = int(len(data) * share)
    assert failure_of(data[:cut] + bytes(len(data) - cut)).code is FailureCode.TRUNCATED


@pytest.mark.parametrize("corner", ["busy", "flat"])
def test_zeros_after_a_complete_jpeg_are_not_a_truncation(corner: str) -> None:
    image = picture(300, 200)
    if corner == "flat":
        image.paste("white", (200, 100, 300, 200))
    data = encoded(image, "JPEG", quality=95, subsampling=0).getvalue()
    whole = pixels_of(decode(io.BytesIO(data)))
    for padded in (data + bytes(1000), data[:-2] + bytes(1000)):
        assert np.array_equal(pixels_of(decode(io.BytesIO(padded))), whole)


@pytest.mark.parametrize(
    "data",
    [
        "/9j/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/yQALCAAQABgB"
        "AREA/8wABgAQEAX/2gAIAQEAAD8ArvqxBOwac2H45f30dJXuOB+2NbUfLnxDihjSsLfvvOAwoG6F8Q8tSdZaRlC1F7AL1p118NGvcG1ELITC"
        "OjCI7i6xg+odIdxFDDzEElW3bpcUyIWnO4SaV0OrCm4E/9k=",
        "/9j/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/ygALCAAQABgB"
        "AREA/8wABAAQ/9oACAEBAAAAAfF3+6D/zAAEEAX/2gAIAQEAAQUCl4HI8Qhf/8wABBAF/9oACAEBAAY/AmLjPBCavtD/zAAEEAX/2gAIAQEA"
        "AT8huRmpldOF0FmcAy0sryQoh0InfVrI/9oACAEBAAAAEMj/zAAEEAX/2gAIAQEAAT8Q1ByYIMwcuOFMnWqiwNCrNgKnn4fyznhf3iApNCHm"
        "tr0MpQZGDvdO64RXaJNr/ussQzD/2Q==",
    ],
    ids=["sequential", "progressive"],
)
def test_a_complete_jpeg_with_arithmetic_coding_is_decoded(data: str) -> None:
    assert decode(io.BytesIO(base64.b64decode(data))).width == 24


def phone_photo(width: int = 1603, height: int = 1201, mode: str = "RGB", **options: Any) -> bytes:
    """Return a JPEG of more than a megapixel, smooth as photos are, whose sides are no multiples of 8."""
    image = picture(200, 150).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    return encoded(image, options.pop("format", "JPEG"), quality=95, **options).getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("least_side", "divisor"),
    [(1202, 1), (1201, 1), (601, 1), (600, 2), (301, 2), (300, 4), (151, 4), (150, 8), (9, 8)],
)
def test_a_jpeg_is_scaled_down_to_no_fewer_pixels_than_are_enough(least_side: int, divisor: int) -> None:
    decoded = decode(io.BytesIO(phone_photo()), least_side=least_side)
    assert decoded.stored.size == (-(-1603 // divisor), -(-1201 // divisor))
    assert (decoded.width, decoded.height) == (1603, 1201)


@pytest.mark.parametrize("options", [{}, {"mode": "L"}, {"mode": "CMYK"}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_every_kind_of_jpeg_is_scaled_down_like_its_pixels(options: dict[str, Any], orientation: int) -> None:
    data = phone_photo(1600, 1200, exif=oriented(orientation), **options)
    exact, scaled = decode(io.BytesIO(data)), decode(io.BytesIO(data), least_side=300)
    assert (scaled.width, scaled.height) == (exact.width, exact.height) == exact.rgb.size
    assert scaled.rgb.size == (exact.width // 4, exact.height // 4)
    means = np.asarray(exact.rgb.reduce(4), np.int16)
    assert np.abs(np.asarray(scaled.rgb, np.int16) - means).mean() < 3


def test_the_first_picture_of_an_mpo_is_scaled_down() -> None:
    second = Image.new("RGB", (1600, 1200))
    data = phone_photo(1600, 1200, format="MPO", save_all=True, append_images=[second])
    decoded = decode(io.BytesIO(data), least_side=300)
    assert (decoded.format, decoded.stored.size) == ("MPO", (400, 300))
    assert np.asarray(decoded.stored).mean() > 60


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full_size(format: str) -> None:
    assert decode(encoded(picture(300, 200), format), least_side=10).stored.size == (300, 200)


def test_the_limit_of_pixels_is_about_the_full_size() -> None:
    assert failure_of(phone_photo(), max_pixels=10**6, least_side=9).code is FailureCode.TOO_LARGE


@pytest.mark.parametrize("least_side", [None, 600, 300, 150])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 4}, {"mode": "CMYK"}])
@pytest.mark.parametrize("end", ["closed", "zeros", "missing"])
def test_a_large_cut_jpeg_is_refused(options: dict[str, Any], end: str, least_side: int | None) -> None:
    data = phone_photo(**options)
    for share in (0.4, 0.7, 0.95):
        cut = int(len(data) * share)
        tail = {"closed": b"\xff\xd9", "zeros": bytes(len(data) - cut), "missing": b""}[end]
        assert failure_of(data[:cut] + tail, least_side=least_side).code is FailureCode.TRUNCATED


@pytest.mark.parametrize("least_side", [None, 300])
def test_a_large_photo_with_a_flat_corner_is_decoded_once(
    least_side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.open(io.BytesIO(phone_photo()))
    image.paste("white", (1000, 800, 1603, 1201))
    opened: list[object] = []
    load = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: (opened.append(a), load(*a, **k))[1])
    decode(encoded(image, "JPEG"), least_side=least_side)
    assert len(opened) == 1


def test_data_after_a_png_is_not_read() -> None:
    data = encoded(picture(30, 20)).getvalue()
    file = io.BytesIO(data + bytes(2**24))
    furthest = 0
    read = file.read

    def watched(size: int | None = -1) -> bytes:
        nonlocal furthest
        found = read(size)
        furthest = max(furthest, file.tell())
        return found

    file.read = watched  # type: ignore[method-assign]
    assert decode(file).width == 30
    assert furthest <= len(data) + 2**20


def test_a_png_with_a_tail_of_zeros_is_refused() -> None:
    data = encoded(picture(300, 200)).getvalue()
    for share in (0.3, 0.6, 0.9, 0.99):
        cut = int(len(data) * share)
        assert failure_of(data[:cut] + bytes(len(data) - cut)).code in (FailureCode.DECODE, FailureCode.TRUNCATED)


def png_with(kind: bytes, body: bytes, count: int = 1) -> bytes:
    data = encoded(picture(30, 20)).getvalue()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk * count + data[33:]


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_with_a_long_text_or_profile_is_decoded(kind: bytes) -> None:
    head = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    assert decode(io.BytesIO(png_with(kind, head + zlib.compress(bytes(3 * 2**20))))).width == 30


def test_a_decompression_bomb_in_png_texts_is_refused() -> None:
    bomb = zlib.compress(bytes(2**24))
    error = failure_of(png_with(b"zTXt", b"name\0\0" + bomb, 1000))
    assert (error.code, "Too much memory used in text chunks" in error.message) == (FailureCode.DECODE, True)


def test_pillows_limit_of_texts_is_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**30)
    decode(encoded(picture(4, 4)))
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**30


def test_pillows_pixel_limit_is_restored() -> None:
    before = Image.MAX_IMAGE_PIXELS
    decode(encoded(picture(4, 4)), max_pixels=10**12)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("format", "how"),
    [
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),  # its directory is at the end
        ("AVIF", {}),
        ("JPEG2000", {}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_have_their_own_code(format: str, how: dict[str, str], share: float) -> None:
    data = encoded(picture(300, 200), format, **how).getvalue()
    assert failure_of(data[: int(len(data) * share)]).code is FailureCode.TRUNCATED


@pytest.mark.parametrize("format", ["DDS", "QOI", "PPM", "SGI"])
def test_truncated_files_of_optional_formats_have_their_own_code(format: str) -> None:
    data = encoded(picture(30, 20), format).getvalue()
    assert in_any_format(data).width == 30
    for length in (len(data) // 2, len(data) - 9):
        assert failure_of(data[:length], formats=(format,)).code is FailureCode.TRUNCATED


def test_a_damaged_png_is_not_an_unsupported_format() -> None:
    data = encoded(picture(64, 64)).getvalue()
    assert failure_of(data[: len(data) // 2]).code is FailureCode.TRUNCATED
    assert failure_of(data[:10]).code is FailureCode.DECODE
    damaged = data[:8] + b"\xff" * 8 + data[16:]
    error = failure_of(damaged)
    assert error.code is FailureCode.DECODE
    assert error.message == "cannot be decoded: it is damaged after its first bytes"
    assert failure_of(damaged + b"more").code is FailureCode.DECODE


def test_complete_files_of_other_formats_are_unsupported() -> None:
    video = (16).to_bytes(4) + b"ftypmp42mp42" + (12).to_bytes(4) + b"mdatAAAA"
    sound = b"RIFF" + (8).to_bytes(4, "little") + b"WAVEfmt "
    for data in (video, sound):
        assert failure_of(data).code is FailureCode.UNSUPPORTED
        assert failure_of(data[:-1]).code is FailureCode.TRUNCATED


def test_empty_and_unknown_bytes() -> None:
    assert failure_of(b"").code is FailureCode.TRUNCATED
    assert failure_of(b"").message == "is empty (0 bytes)"
    for data in (b"hello\n", b"<html></html>", b"\0" * 1000, b"%PDF-1.4\n"):
        assert failure_of(data).code is FailureCode.UNSUPPORTED
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
    assert failure_of(pointer).message == "is a pointer of Git LFS, not the picture itself: git lfs pull"


def test_damaged_bytes_raise_nothing_but_picture_errors() -> None:
    whole = encoded(picture(64, 64), "PNG").getvalue()
    generator = np.random.RandomState(0)
    outcomes = set()
    for _ in range(200):
        data = bytearray(whole)
        for position in generator.randint(8, len(data), 4):
            data[position] ^= generator.randint(1, 256)
        try:
            decode(io.BytesIO(bytes(data)))
            outcomes.add("decoded")
        except PictureError as error:
            outcomes.add(error.code.value)
    assert outcomes & {"decode", "truncated", "unsupported"}


@pytest.mark.parametrize("format", ["DDS", "ICO", "PCX", "PPM", "SGI"])
def test_optional_formats_are_decoded_only_on_request(format: str) -> None:
    data = encoded(picture(64, 64), format).getvalue()
    assert in_any_format(data).width == 64
    error = failure_of(data)
    assert error.code is FailureCode.UNSUPPORTED
    assert error.message == f"is {format}, which is decoded only on request: formats={format.lower()}"


def test_formats_have_pillows_suffixes() -> None:
    registered = Image.registered_extensions()
    for name, suffixes in {**DEFAULT_FORMATS, **OPTIONAL_FORMATS}.items():
        pillows = {suffix for suffix, format in registered.items() if format == name}
        assert name == "HEIF" or pillows <= set(suffixes)
    assert not {"EPS", "IPTC", "WMF", "FPX", "MIC"} & {*DEFAULT_FORMATS, *OPTIONAL_FORMATS}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown picture format 'eps'"):
        formats_with(["ppm", "eps"])


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heif_without_its_decoder_names_the_package(brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    error = failure_of((16).to_bytes(4) + b"ftyp" + brand + bytes(4) + (8).to_bytes(4) + b"meta")
    assert (error.code, "pip install 'metaformer-cli[heif]'" in error.message) == (FailureCode.UNSUPPORTED, True)


def test_heif_is_decoded() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(file, quality=90)
    file.seek(0)
    found = pixels_of(decode(file))
    assert found.shape == (48, 64, 3)
    assert np.abs(found.astype(int) - (200, 30, 60)).max() < 8
    assert failure_of(file.getvalue()[:-40]).code is FailureCode.TRUNCATED


def test_ghostscript_is_disabled_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    seen = []
    opened = Image.open

    def watched(file: io.BytesIO, **options: Any) -> Image.Image:
        seen.append((EpsImagePlugin.gs_binary, "EPS" in options["formats"]))
        return opened(file, **options)

    monkeypatch.setattr(Image, "open", watched)
    decode(encoded(picture(4, 4)))
    assert seen == [(False, False)] * 2  # opened, and checked chunk by chunk
    assert EpsImagePlugin.gs_binary == "gs"


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [("PNG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("TIFF", "1", {"compression": "group4"})],
    ids=str,
)
def test_max_pixels_replaces_pillows_limit(
    format: str, mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(picture(20, 10, mode), format, **options), max_pixels=200).width == 20
    assert Image.MAX_IMAGE_PIXELS == 10


def test_max_pixels() -> None:
    data = encoded(picture(20, 10)).getvalue()
    assert pixels_of(decode(io.BytesIO(data), max_pixels=200)).shape == (10, 20, 3)
    error = failure_of(data, max_pixels=199)
    assert (error.code, error.message) == (FailureCode.TOO_LARGE, "20x10 is over max_pixels=199")


def test_a_picture_larger_than_its_header_says_is_refused() -> None:
    png = encoded(picture(600, 400)).getvalue()
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 20, 10, 0, 0, 1, 8, len(png), 22) + png  # claims to be 20x10
    assert in_any_format(icon, max_pixels=240_000).width == 600
    error = failure_of(icon, max_pixels=100_000, formats=("ICO",))
    assert (error.code, error.message) == (FailureCode.TOO_LARGE, "240000 pixels are over max_pixels=100000")


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


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    bomb = bytearray(encoded(Image.new("1", (8, 8))).getvalue())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    assert failure_of(bytes(bomb)).message == "3600000000 pixels are over max_pixels=178956970"

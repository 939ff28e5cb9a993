"""Decoding: the RGB of each kind of picture, and the code of each refusal."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from deterministic import picture
from encoding import encoded, failure_of, in_any_format, pixels_of
from mfcli.errors import FailureCode, PictureError, UsageError
from mfcli.inputs.codecs import DEFAULT_FORMATS, OPTIONAL_FORMATS, formats_with
from mfcli.inputs.decode import decode


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


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full_size(format: str) -> None:
    assert decode(encoded(picture(300, 200), format), least_side=10).stored.size == (300, 200)


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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%PDF-1.7\n", "is a PDF document, not a picture"),
        (b"<!DOCTYPE html>\n<title>404</title>", "is a web page, not a picture"),
        (b"\n<html></html>", "is a web page, not a picture"),
        (b'<?xml version="1.0"?><svg></svg>', "is SVG or other XML, not pixels"),
        (b"\0\0\0\x10ftypmp42\0\0\0\0", "is a video, not a picture"),
        (b"\0\0\0\x10ftypqt  \0\0\0\0", "is a video, not a picture"),
        (b"\x1aE\xdf\xa3webm", "is a video, not a picture"),
        (b"RIFF\x04\0\0\0AVI ", "is a video, not a picture"),
        (b"RIFF\x04\0\0\0WAVE", "is not a picture in a format that is decoded here"),
    ],
)
def test_files_that_are_often_taken_for_pictures_are_named(data: bytes, message: str) -> None:
    error = failure_of(data)
    assert (error.code, error.message) == (FailureCode.UNSUPPORTED, message)


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


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    bomb = bytearray(encoded(Image.new("1", (8, 8))).getvalue())
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    assert failure_of(bytes(bomb)).message == "3600000000 pixels are over max_pixels=178956970"

"""JPEGs whose data ends early are refused, and large ones are scaled down."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import CHECKOUT
from deterministic import picture
from encoding import encoded, failure_of, pixels_of
from mfcli.errors import FailureCode
from mfcli.inputs.decode import decode

CORPUS = CHECKOUT / "fuzz" / "corpus" / "decode"


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


@pytest.mark.parametrize("kind", ["arithmetic", "arithmetic-progressive", "arithmetic-restart", "scans"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_cut_jpeg_of_a_rare_kind_is_refused(kind: str, share: float) -> None:
    data = (CORPUS / f"{kind}.jpg").read_bytes()
    cut = int(len(data) * share)
    assert decode(io.BytesIO(data)).width == 150
    assert failure_of(data[:cut] + b"\xff\xd9").code is FailureCode.TRUNCATED
    assert failure_of(data[:cut] + bytes(len(data) - cut)).code in (FailureCode.TRUNCATED, FailureCode.DECODE)


def test_a_flat_end_that_arithmetic_coding_leaves_out_is_not_a_truncation() -> None:
    assert decode(io.BytesIO((CORPUS / "arithmetic-flat.jpg").read_bytes())).width == 1600


def test_an_arithmetic_jpeg_is_decoded_across_the_blocks_in_which_pillow_reads() -> None:
    data = (CORPUS / "arithmetic.jpg").read_bytes()
    length = 2**16 - 4 - len(data) // 2  # the first block ends in the scan
    comment = b"\xff\xfe" + length.to_bytes(2, "big") + bytes(length - 2)
    whole = pixels_of(decode(io.BytesIO(data)))
    assert np.array_equal(pixels_of(decode(io.BytesIO(data[:2] + comment + data[2:]))), whole)


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_jpeg_that_is_cut_between_restarts_is_refused(share: float, offset: int) -> None:
    data = encoded(picture(300, 200), "JPEG", quality=80, restart_marker_blocks=1).getvalue()
    cut = data.index(b"\xff\xd0", int(len(data) * share)) + offset
    assert failure_of(data[:cut] + b"\xff\xd9").code is FailureCode.TRUNCATED


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
    [(1202, 1), (1201, 1), (601, 1), (600, 2), (301, 2), (300, 4), (101, 4), (100, 8), (9, 8)],
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


def test_the_limit_of_pixels_is_about_the_full_size() -> None:
    assert failure_of(phone_photo(), max_pixels=10**6, least_side=9).code is FailureCode.TOO_LARGE


@pytest.mark.parametrize("least_side", [None, 600, 300, 100])
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

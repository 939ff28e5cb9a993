"""Pictures from Python: each kind is the RGB of its file, and what is no picture says so."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deterministic import picture
from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.decode import decode
from mfcli.inputs.pictures import check_picture, is_many, make_source
from mfcli.inputs.selection import Selection
from mfcli.inputs.source import Source


def rgb_of(source: Source) -> NDArray[np.uint8]:
    assert source.failure is None, source.failure
    if source.decoded is None:
        with source.open() as file:
            return np.asarray(decode(file).rgb)
    assert source.decoded.rgb.mode == "RGB"
    return np.asarray(source.decoded.rgb)


GREY = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
TRANSPARENT = picture(16, 16).quantize(8)
PICTURES: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    **{mode: (picture(40, 30, mode), "PNG", {}) for mode in ("RGB", "1", "L", "P")},
    **{mode: (picture(40, 30, mode), "TIFF", {}) for mode in ("CMYK", "YCbCr")},
    "RGBA": (Image.fromarray(np.dstack([np.asarray(picture(32, 32)), np.uint8(GREY >> 8)])), "PNG", {}),
    "LA": (Image.fromarray(np.dstack([np.uint8(GREY >> 8), np.uint8(GREY >> 7)])), "PNG", {}),
    "P, transparent": (TRANSPARENT, "PNG", {"transparency": 3}),
    "RGB, transparent": (Image.new("RGB", (4, 4), "red"), "PNG", {"transparency": (255, 0, 0)}),
    "I;16": (Image.fromarray(GREY), "PNG", {}),
    "I": (Image.fromarray(GREY.astype(np.int32)), "TIFF", {}),
    "I;16, white is zero": (Image.fromarray(GREY), "TIFF", {"tiffinfo": {262: 0}}),
    "F": (Image.fromarray(GREY.astype(np.float32)), "TIFF", {}),
    "LAB": (Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 90, 20, 200])), "TIFF", {}),
    "JPEG": (picture(40, 30), "JPEG", {}),
    "GIF": (picture(40, 30), "GIF", {"save_all": True, "append_images": [picture(40, 30, name="second")]}),
}


@pytest.mark.parametrize("load", [id, Image.Image.load], ids=["lazy", "loaded"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_pil_image_is_its_file(name: str, load: Callable[[Image.Image], object], tmp_path: Path) -> None:
    image, format, options = PICTURES[name]
    path = tmp_path / "picture"
    image.save(path, format, **options)
    expected = rgb_of(make_source(path))
    with Image.open(path) as opened:
        load(opened)
        for _ in range(2):  # loading it the first time changes nothing
            source = make_source(opened)
            assert source.argument == str(path)
            assert np.array_equal(rgb_of(source), expected)
    assert np.array_equal(rgb_of(make_source(path.read_bytes())), expected)


@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_pil_image_is_turned_upright(format: str, orientation: int, exif: bool) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    file = io.BytesIO()
    picture(24, 16).save(file, format, exif=tags)
    expected = np.asarray(decode(io.BytesIO(file.getvalue()), exif=exif).rgb)
    with Image.open(file) as opened:
        found = rgb_of(make_source(opened, exif=exif))
    assert np.array_equal(found, expected)
    assert found.shape[:2] == ((24, 16) if exif and orientation > 4 else (16, 24))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[::-1, ::2], np.asfortranarray], ids=["plain", "view", "F"])
def test_an_array_is_the_picture_of_its_pixels(mode: str, view: Callable[[Any], Any]) -> None:
    array = np.array(picture(40, 30, mode))
    if mode == "RGBA":
        array[..., 3] = np.arange(40) * 6
    file = io.BytesIO()
    Image.fromarray(view(array)).save(file, "PNG")
    expected = rgb_of(make_source(file.getvalue()))
    source = make_source(view(array))
    if mode == "L":
        assert np.array_equal(rgb_of(make_source(view(array)[..., None])), expected)
    array[:] = 0  # a buffer is used again
    assert np.array_equal(rgb_of(source), expected)


def test_an_animation_gives_its_current_frame() -> None:
    from PIL import ImageSequence

    file = io.BytesIO()
    colours = ["red", "lime", "blue"]
    frames = [Image.new("RGB", (4, 4), colour) for colour in colours]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with Image.open(file) as opened:
        sources = list(map(make_source, ImageSequence.Iterator(opened)))
    assert [rgb_of(source)[0, 0].argmax() for source in sources] == [0, 1, 2]


def test_names() -> None:
    array = np.zeros((2, 3, 3), np.uint8)
    pictures: list[Any] = ["a.jpg", Path("http://a.jpg"), b"", bytearray(), array, Image.fromarray(array)]
    names = ["a.jpg", "http:/a.jpg", "<bytes>", "<bytes>", "<array>", "<image>"]
    assert [make_source(one).argument for one in pictures] == names
    source = make_source("http://127.0.0.1:9/a.jpg", selection=Selection(offline=True))
    assert source.failure is not None
    assert source.failure.code is FailureCode.NETWORK
    assert make_source(source) is source


def truncated() -> Image.Image:
    file = io.BytesIO()
    picture(64, 64).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:3000]))


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (truncated, FailureCode.TRUNCATED, "is truncated: "),
        (lambda: np.zeros((20, 10), np.uint8), FailureCode.TOO_LARGE, "10x20 is over max_pixels=100"),
        (lambda: np.zeros((0, 10, 3), np.uint8), FailureCode.DECODE, "has no pixels (10x0)"),
        (lambda: b"text", FailureCode.UNSUPPORTED, "is not a picture"),
    ],
)
def test_a_picture_that_is_wrong_is_a_failure(make: Callable[[], Any], code: FailureCode, message: str) -> None:
    source = make_source(make(), max_pixels=5000 if make is truncated else 100)
    with pytest.raises(PictureError) as caught, source.open() as file:
        decode(file)
    assert caught.value.code is code
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "x is None .* cv2.imread returns None"),
        (7, "x is of type int instead of a path, "),
        ({"a.jpg": 1}, "x is of type dict"),
        (io.BytesIO(), r"x is a file object; pass its bytes: BytesIO.read\(\)"),
        (torch.zeros(3, 8, 8), r"x is a Tensor of torch; .*permute\(1, 2, 0\).cpu\(\).numpy\(\)"),
        (np.zeros((8, 8, 3)), r"x is an array of float64 instead of uint8.*; for values from 0 to 1, pass \(255 \* "),
        (np.zeros((8, 8), bool), "x is an array of bool instead of uint8, with levels from 0 to 255$"),
        (np.array(["a.jpg"]), r"x is an array of <U5, .* pass array.tolist\(\)"),
    ],
)
def test_a_wrong_type_says_so(picture: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_picture(picture, "x")


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((8,), ""),
        ((8, 8, 2), ""),
        ((3, 8, 9), r"; for channels first, pass array.transpose\(1, 2, 0\)"),
        ((2, 8, 8, 3), r"; for a batch, pass list\(array\)"),
    ],
)
def test_a_wrong_shape_says_so(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(ValueError, match=rf" instead of \(H, W\), \(H, W, 3\) or \(H, W, 4\){advice}$"):
        check_picture(np.zeros(shape, np.uint8))


def test_what_is_many() -> None:
    array = np.zeros((2, 3), np.uint8)
    many: list[object] = [[], (), iter("ab"), map(str, "ab"), (x for x in "ab"), range(3)]
    assert all(map(is_many, many))
    one = ["ab", b"ab", Path("a"), array, Image.fromarray(array), {"a"}, {}, io.BytesIO(), torch.zeros(2, 2), 7]
    assert not any(map(is_many, one))

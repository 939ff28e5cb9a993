"""Pictures as files, and what becomes of them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mfcli.errors import PictureError
from mfcli.inputs.codecs import OPTIONAL_FORMATS, formats_with
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

"""Pictures whose last data is zeros are refused, unless they may be whole."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deterministic import picture
from encoding import encoded, failure_of, pixels_of
from mfcli.errors import FailureCode
from mfcli.inputs.decode import decode

KINDS: list[tuple[str, dict[str, Any]]] = [("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {"speed": 9})]


def smooth() -> Image.Image:
    return picture(60, 40).resize((300, 200), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("format", "options"), KINDS, ids=str)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_picture_that_is_filled_up_with_zeros_is_refused(format: str, options: dict[str, Any], share: float) -> None:
    data = encoded(smooth(), format, **options).getvalue()
    cut = int(len(data) * share)
    assert failure_of(data[:cut] + bytes(len(data) - cut)).code in (FailureCode.TRUNCATED, FailureCode.DECODE)


@pytest.mark.parametrize(("format", "options"), KINDS, ids=str)
def test_zeros_after_the_end_are_not_a_truncation(format: str, options: dict[str, Any]) -> None:
    data = encoded(smooth(), format, **options).getvalue()
    whole = pixels_of(decode(io.BytesIO(data)))
    assert np.array_equal(pixels_of(decode(io.BytesIO(data + bytes(len(data))))), whole)


def test_no_more_memory_is_taken_than_the_file_has_bytes(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    path.write_bytes(encoded(smooth(), "JPEG", progressive=True).getvalue())
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            decode(file)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_zeros_for_a_flat_end_are_not_a_truncation() -> None:
    image = Image.new("RGB", (300, 600), "white")
    image.paste(smooth(), (0, 0))
    data = encoded(image, "WEBP", lossless=True, quality=0, method=0).getvalue()
    assert data.endswith(bytes(len(data) // 32))
    assert decode(io.BytesIO(data)).height == 600

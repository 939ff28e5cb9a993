"""From what a caller in Python has to a `Source`: a name, the bytes of a file, a picture of Pillow's, or an array.

Wrong types raise; what is wrong with a picture of the right type becomes a source that fails, as in sources.py.
"""

import io
import os
from collections.abc import Iterable, Mapping, Set
from functools import partial
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mfcli.errors import PictureError
from mfcli.files import is_url
from mfcli.inputs.decode import decode_image
from mfcli.inputs.selection import Selection
from mfcli.inputs.source import Source, make_url_source
from mfcli.results import Failure
from mfcli.settings import DEFAULT_MAX_PIXELS

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any] | Source
"""One picture: the path of a file or a URL, a path, the bytes of a file, a picture of Pillow's, an array, or a source.

Arrays are uint8 and of shape (height, width), (height, width, 3) as RGB, or (height, width, 4) as RGBA.
"""

_ONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Source)
_EXPECTED = "a path, a URL, the bytes of a file, a PIL image or a NumPy array"
_TENSOR_TO_ARRAY = "(255 * tensor).round().byte().permute(1, 2, 0).cpu().numpy()"


def is_many(pictures: object) -> TypeGuard[Iterable[Any]]:
    """Whether it is an iterable of pictures, such as a list or a column of a table, rather than one picture."""
    if isinstance(pictures, (*_ONE, Mapping, Set)) or hasattr(pictures, "read"):
        return False
    return isinstance(pictures, Iterable) and getattr(pictures, "ndim", 1) == 1


def check_picture(picture: object, name: str = "picture") -> None:
    """Check that it is a `Picture`, without looking at its content.

    Args:
        picture: anything.
        name: what a message calls it.

    Raises:
        TypeError: it is of another type, or an array of another dtype.
        ValueError: an array of another shape.
    """
    if isinstance(picture, np.ndarray):
        _check_array(picture, name)
    elif not isinstance(picture, _ONE):
        raise TypeError(f"{name} is {_describe(picture)}")


def _describe(picture: object) -> str:
    kind = type(picture)
    if picture is None:
        return f"None instead of {_EXPECTED}; cv2.imread returns None for a file that it cannot read"
    if kind.__module__.partition(".")[0] == "torch":
        return f"a {kind.__name__} of torch; for RGB from 0 to 1, pass {_TENSOR_TO_ARRAY}"
    if hasattr(picture, "read"):
        return f"a file object; pass its bytes: {kind.__name__}.read()"
    return f"of type {kind.__name__} instead of {_EXPECTED}"


def _check_array(array: NDArray[Any], name: str) -> None:
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"{name} is an array of {array.dtype}, not of pixels; for a list of pictures, pass array.tolist()"
        )
    if array.dtype != np.uint8:
        advice = (
            "; for values from 0 to 1, pass (255 * array).round().astype('uint8')" if array.dtype.kind == "f" else ""
        )
        raise TypeError(f"{name} is an array of {array.dtype} instead of uint8, with levels from 0 to 255{advice}")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return
    advice = ""
    if array.ndim == 4:
        advice = "; for a batch, pass list(array)"
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
        advice = "; for channels first, pass array.transpose(1, 2, 0)"
    raise ValueError(f"{name} is an array of shape {array.shape} instead of (H, W), (H, W, 3) or (H, W, 4){advice}")


def make_source(
    picture: Picture,
    *,
    exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> Source:
    """Return the source of a picture; a PIL image or an array is converted now, so that it may change afterwards.

    Args:
        picture: its name in the result is its path, URL or file name, else `<bytes>`, `<image>` or `<array>`.
        exif: whether to apply the EXIF orientation of a PIL image.
        max_pixels: the largest PIL image or array that is accepted, width x height.
        selection: the limits of a URL.

    Raises:
        TypeError: see `check_picture`.
        ValueError: likewise.
        MemoryError: the picture does not fit into memory.
    """
    if isinstance(picture, Source):
        return picture
    if isinstance(picture, str):
        return make_url_source(picture, selection) if is_url(picture) else Source(str(picture))
    check_picture(picture)
    if isinstance(picture, os.PathLike):
        return Source(os.fsdecode(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return Source("<bytes>", opener=partial(io.BytesIO, bytes(picture)))
    if isinstance(picture, np.ndarray):
        name, image = "<array>", _make_image(picture)
    else:
        name, image = os.fsdecode(getattr(picture, "filename", None) or "<image>"), picture
    try:
        return Source(name, decoded=decode_image(image, exif=exif, max_pixels=max_pixels))
    except PictureError as error:
        return Source(name, failure=Failure(error.code, error.message))


def _make_image(array: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)

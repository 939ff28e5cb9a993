"""Reading .safetensors files: the table of tensors from the header, and the numbers when they are asked for.

The format is checked by the safetensors package, which does not read bfloat16 into NumPy arrays, nor the beginning of
a file that is still being downloaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import ModelError
from mfcli.models.parameters import Shape
from mfcli.models.pth import widen_bfloat16

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's floating-point types by their usual names."""
MAX_HEADER_BYTES = 2**24
"""The longest header that is read; that of 1,000 tensors has 100 kB."""
_LENGTH_BYTES = 8
MAX_BEGINNING_BYTES = _LENGTH_BYTES + MAX_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """A tensor as a header describes it; `read` gives its numbers.

    Attributes:
        dtype: the name of its element type.
        shape: of the tensor.
        start: of its numbers, in bytes after the header.
        load: reads all bytes after the header, once.
    """

    dtype: str
    shape: Shape
    start: int
    load: Callable[[], NDArray[np.uint8]]

    def read(self) -> NDArray[Any]:
        """Return a view of the numbers in their own type; bfloat16 as float32, which is a copy.

        Raises:
            OSError: they cannot be read.
            TypeError: they are cut off.
        """
        dtype = np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")
        numbers = np.ndarray(self.shape, dtype, self.load(), self.start)
        return widen_bfloat16(numbers) if self.dtype == "bfloat16" else numbers


def is_safetensors(beginning: bytes) -> bool:
    """Return whether a file of which these are the first bytes, at least nine, is in this format."""
    return beginning[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """Return the tensors of a .safetensors file; their numbers are not read yet.

    Raises:
        ModelError: it is damaged, or its header is longer than MAX_HEADER_BYTES.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        beginning = file.read(_LENGTH_BYTES)
        beginning += file.read(min(_header_size(beginning), MAX_HEADER_BYTES))
    table = read_table(str(path), beginning)
    try:
        with safe_open(path, "numpy"):
            pass  # the shapes fit the offsets, and these the size of the file
    except SafetensorError as error:
        raise _damaged(str(path), str(error)) from error
    if table is None:
        raise _damaged(str(path), "its header is cut off")
    load = cache(lambda: np.fromfile(path, np.uint8, offset=len(beginning)))
    return {name: SafetensorsTensor(dtype, shape, start, load) for name, (dtype, shape, start) in table.items()}


def read_table(file: str, beginning: bytes) -> dict[str, tuple[str, Shape, int]] | None:
    """Return element type, shape and position of each tensor from the first bytes of a .safetensors file.

    Args:
        file: how messages name the file.
        beginning: the bytes.

    Returns:
        None where they do not hold the whole header yet.

    Raises:
        ModelError: the header is damaged, or longer than MAX_HEADER_BYTES.
    """
    size = _header_size(beginning)
    if size > MAX_HEADER_BYTES:
        raise _damaged(file, f"its header has {size} bytes")
    header = beginning[_LENGTH_BYTES : _LENGTH_BYTES + size]
    if len(header) < size:
        return None
    try:
        table = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return {
            name: (FLOATS.get(e["dtype"], e["dtype"]), tuple(map(int, e["shape"])), e["data_offsets"][0])
            for name, e in table.items()
        }
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(file, "its header is not a table of tensors") from error


def _header_size(beginning: bytes) -> int:
    return int.from_bytes(beginning[:_LENGTH_BYTES], "little")


def _damaged(file: str, reason: str) -> ModelError:
    return ModelError(f"{file} is a damaged safetensors file: {reason}", "get the file again")

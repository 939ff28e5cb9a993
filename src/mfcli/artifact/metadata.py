"""The metadata of an ONNX file, read without the onnx package and without the weights.

It is on the path of every prediction: once NumPy and ONNX Runtime are imported, it takes 1 ms for the bundled model,
while `import onnx` and `onnx.load` take 110 ms and 25 MB (medians of 11 processes on one core, onnx 1.23). The whole
command takes about 500 ms.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

_METADATA_PROPS = 14  # ModelProto.metadata_props in onnx.proto


def read_metadata(file: BinaryIO, size_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield the names and values of an ONNX file's metadata properties; all other fields are skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an ONNX file, or truncated.
    """
    while file.tell() < size_bytes:
        tag = _read_varint(file)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _read_varint(file)
            continue
        length = _read_varint(file) if wire_type == 2 else 0
        if wire_type != 2 or file.tell() + length > size_bytes:
            raise ValueError("not an ONNX file, or truncated")
        if field != _METADATA_PROPS:
            file.seek(length, os.SEEK_CUR)
            continue
        yield _read_string_pair(file, file.tell() + length)


def _read_string_pair(file: BinaryIO, end: int) -> tuple[str, str]:
    strings = {}
    while file.tell() < end:
        tag, length = _read_varint(file), _read_varint(file)
        if tag & 7 != 2 or file.tell() + length > end:
            raise ValueError("not an ONNX file, or truncated")
        strings[tag >> 3] = file.read(length).decode()
    return strings.get(1, ""), strings.get(2, "")


def _read_varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("truncated")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7

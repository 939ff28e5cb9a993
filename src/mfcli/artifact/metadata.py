"""The metadata of an ONNX file, read without its weights and without the onnx package, which takes long to import."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_METADATA_PROPS = 14  # ModelProto.metadata_props in onnx.proto


def metadata_props(file: BinaryIO, size_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield the names and values of an ONNX file's metadata; every other field is skipped by its length.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ONNX file, or cut off.
    """
    while file.tell() < size_bytes:
        tag = _varint(file)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _varint(file)
            continue
        length = _varint(file) if wire_type == 2 else 0
        if wire_type != 2 or file.tell() + length > size_bytes:
            raise ValueError("not an ONNX file, or cut off")
        if field != _METADATA_PROPS:
            file.seek(length, os.SEEK_CUR)
            continue
        yield _string_pair(file, file.tell() + length)


def _string_pair(file: BinaryIO, end: int) -> tuple[str, str]:
    strings = {}
    while file.tell() < end:
        tag, length = _varint(file), _varint(file)
        if tag & 7 != 2 or file.tell() + length > end:
            raise ValueError("not an ONNX file, or cut off")
        strings[tag >> 3] = file.read(length).decode()
    return strings.get(1, ""), strings.get(2, "")


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7

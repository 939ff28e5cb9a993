"""The pictures in a Parquet file, one in each row: bytes, as Hugging Face stores them or plain, or names and addresses.

A row is a member of the file; its number, from 0, is its name. Rows are read in batches of bounded size, page by page,
however large the file's row groups are.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.members import Member, check_size
from mfcli.inputs.selection import Selection
from mfcli.outputs.parquet import import_parquet
from mfcli.results import Failure

_MAGIC = b"PAR1"
_BUFFER_BYTES = 2**20
_BATCH_BYTES = 2**24
_MAX_BATCH_ROWS = 256
_MAX_NAMED = 20
"""Columns in a message."""


def iter_parquet(file: BinaryIO, takes: Callable[[str], bool], selection: Selection) -> Iterator[Member]:
    """Yield the rows of a Parquet file.

    Args:
        file: the file; it is closed at the end.
        takes: whether a row is wanted, by its number.
        selection: the column of the pictures, those that are kept, and the largest picture that is read.

    Raises:
        EngineError: pyarrow is not installed.
        EOFError: it is truncated, as may be any exception of pyarrow for one that is damaged.
        PictureError: it is not a Parquet file, or lacks the columns.
    """
    parquet = import_parquet()
    with file:
        _check_ends(file)
        # without pre_buffer=False, whole row groups are read ahead
        table = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        column = _find_column(table.schema_arrow, selection.column)
        _check_kept(table.schema_arrow, selection.keep)
        first = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group)
            if selection.names_only:
                names = map(str, range(first, first + rows.num_rows))
                yield from (Member(name) for name in names if takes(name))
            elif any(takes(str(number)) for number in range(first, first + rows.num_rows)):
                size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * rows.num_rows // max(1, rows.total_byte_size)))
                batches = table.iter_batches(
                    size, row_groups=[group], columns=list({column, *selection.keep}), use_threads=False
                )
                yield from _read_rows(batches, first, column, takes, selection)
            first += rows.num_rows


def _check_ends(file: BinaryIO) -> None:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise PictureError(FailureCode.DECODE, "is not a Parquet file")
    file.seek(-len(_MAGIC), os.SEEK_END)
    if file.read() != _MAGIC:
        raise EOFError


def _read_rows(
    batches: Iterator[Any], first: int, column: str, takes: Callable[[str], bool], selection: Selection
) -> Iterator[Member]:
    """Yield the wanted rows of batches, of which the first has the number `first`."""
    for batch in batches:
        kept = {name: _to_texts(batch.column(name)) for name in selection.keep}
        for at, value in enumerate(batch.column(column)):
            name = str(first + at)
            if takes(name):
                row = {key: _to_json(values[at].as_py()) for key, values in kept.items()} if kept else None
                yield _make_member(name, value.as_py(), row, selection.max_bytes)
        first += batch.num_rows


def _make_member(name: str, value: Any, kept: dict[str, Any] | None, max_bytes: int) -> Member:
    """Return the member for the value in the column of pictures: bytes, a name, a struct of both, or null."""
    if isinstance(value, dict):
        value = value.get("path") if value["bytes"] is None else value["bytes"]
    if value is None:
        return Member(name, Failure(FailureCode.NOT_FOUND, "the picture of the row is null"), kept=kept)
    if isinstance(value, str):
        return Member(name, target=value, kept=kept)
    failure = check_size(len(value), max_bytes)
    return Member(name, failure, None if failure else partial(io.BytesIO, value), kept=kept, held_bytes=len(value))


# ----------------------------------------------------------------------------------------------------------- columns


def _find_column(schema: Any, wanted: str | None) -> str:
    """Return the column of the pictures: the one that is wanted, or the only one of bytes, or of text.

    Raises:
        PictureError: there is none, or several.
    """
    if wanted is not None:
        _check_exists(schema, wanted)
        type = schema.field(wanted).type
        if not (_holds_bytes(type) or _holds_text(type)):
            raise _refuse(f"column {wanted} is {type}; one picture a row is read, as bytes or a name")
        return wanted
    for holds in (_holds_bytes, _holds_text):
        found: list[str] = [field.name for field in schema if holds(field.type)]
        if len(found) > 1:
            raise _refuse(f"has several columns that may be pictures, {_list(found)}: column=NAME")
        if found:
            return found[0]
    raise _refuse(f"has no column of pictures; it has {_list([f'{field.name} ({field.type})' for field in schema])}")


def _check_exists(schema: Any, name: str) -> None:
    if schema.names.count(name) != 1:
        raise _refuse(f"has no column {name}; it has {_list(schema.names)}")


def _check_kept(schema: Any, names: tuple[str, ...]) -> None:
    for name in names:
        _check_exists(schema, name)
        if "binary" in str(schema.field(name).type):
            raise _refuse(f"column {name} has bytes, which rows cannot keep")


def _refuse(message: str) -> PictureError:
    return PictureError(FailureCode.UNSUPPORTED, message)


def _list(names: list[str]) -> str:
    more = [f"{len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else []
    return ", ".join([*names[:_MAX_NAMED], *more]) or "none"


def _holds_bytes(type: Any) -> bool:
    """Whether values of a type are bytes, alone or in Hugging Face's struct with the name of the file."""
    from pyarrow import types

    if types.is_struct(type):
        at = type.get_field_index("bytes")
        return at >= 0 and _holds_bytes(type.field(at).type)
    if types.is_dictionary(type):
        return _holds_bytes(type.value_type)
    return bool(types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type))


def _holds_text(type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(type):
        return _holds_text(type.value_type)
    return bool(types.is_string(type) or types.is_large_string(type) or types.is_string_view(type))


# -------------------------------------------------------------------------------------------------------- kept values


def _to_texts(values: Any) -> Any:
    """Return an array with times and decimals as text, in all their digits."""
    import pyarrow
    from pyarrow import types

    needs_text = types.is_temporal(values.type) or types.is_decimal(values.type)
    return values.cast(pyarrow.string()) if needs_text else values


def _to_json(value: Any) -> Any:
    """Return a value of JSON; NaN and the infinities, which it lacks, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)

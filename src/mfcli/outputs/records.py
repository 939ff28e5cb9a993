"""Records, such as rows of the registry, in every format."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mfcli.outputs.json import format_document, format_line
from mfcli.outputs.writer import FormatName

Record = Mapping[str, Any]
"""Names to strings, numbers, None, or sequences of them."""


def write_records(name: FormatName, stream: TextIO, records: Sequence[Record], columns: Sequence[str] = ()) -> None:
    """Write records that have the same keys; JSON keeps their types, the others write sequences with spaces between.

    Args:
        name: the format.
        stream: text, without translation of newlines.
        records: what to write.
        columns: the header of CSV and TSV where there are no records.
    """
    match name:
        case FormatName.TABLE:
            from mfcli.outputs.table import write_table

            write_table(stream, [{key: _text(value) for key, value in record.items()} for record in records])
        case FormatName.JSON:
            stream.write(format_document(list(records)))
        case FormatName.JSONL:
            stream.writelines(format_line(record) + "\n" for record in records)
        case FormatName.CSV | FormatName.TSV:
            separator = "," if name is FormatName.CSV else "\t"
            writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
            if header := list(records[0] if records else columns):
                writer.writerow(header)
            writer.writerows(map(_text, record.values()) for record in records)
    stream.flush()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

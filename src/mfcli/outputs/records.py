"""Write records, such as rows of the registry, in any format; pictures' results have writers of their own."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, assert_never

from mfcli.outputs.csv import escape_cell
from mfcli.outputs.json import format_document, format_line
from mfcli.outputs.writer import RecordFormat

Record = Mapping[str, Any]
"""Keys to strings, numbers, None, or lists or dicts of these."""


def write_records(
    name: RecordFormat,
    stream: TextIO,
    records: Sequence[Record],
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Write records that have the same keys; JSON keeps their types, the other formats join lists with spaces.

    Args:
        name: the format.
        stream: a text stream that does not translate newlines.
        records: the records.
        columns: the header of CSV and TSV if there are no records.
        optional: columns that a table does without in a narrow terminal, the most dispensable first.
    """
    match name:
        case RecordFormat.TABLE:
            from mfcli.outputs.table import write_table

            rows = [{key: _format_cell(value) for key, value in record.items()} for record in records]
            write_table(stream, rows, optional)
        case RecordFormat.JSON:
            stream.write(format_document(list(records)))
        case RecordFormat.JSONL:
            stream.writelines(format_line(record) + "\n" for record in records)
        case RecordFormat.CSV | RecordFormat.TSV:
            separator = "," if name is RecordFormat.CSV else "\t"
            writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
            if header := list(records[0] if records else columns):
                writer.writerow(header)
            writer.writerows([escape_cell(_format_cell(value)) for value in record.values()] for record in records)
        case _:
            assert_never(name)
    stream.flush()


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""Flat records, such as rows of the registry, in every format; the columns are the same in all of them."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import TextIO

from mfcli.formats.base import FormatName

Cell = str | int | float | bool | None
Record = Mapping[str, Cell]


def write_records(name: FormatName, stream: TextIO, records: Sequence[Record], table_columns: Sequence[str]) -> None:
    """Write records that have the same keys.

    Args:
        name: the format.
        stream: text, without translation of newlines.
        records: what to write.
        table_columns: the keys that the table for people shows; the other formats show all.
    """
    match name:
        case FormatName.TABLE:
            _table(stream, records, table_columns)
        case FormatName.JSON:
            stream.write(json.dumps(list(records), ensure_ascii=False, indent=1) + "\n")
        case FormatName.JSONL:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        case FormatName.CSV | FormatName.TSV:
            separator = "," if name is FormatName.CSV else "\t"
            writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
            writer.writerows([list(records[0]), *(record.values() for record in records)] if records else [])
    stream.flush()


def _table(stream: TextIO, records: Sequence[Record], columns: Sequence[str]) -> None:
    from rich.table import Table

    from mfcli.formats.table import make_console

    table = Table(box=None, header_style="bold")
    for column in columns:
        number = any(isinstance(record[column], int | float) for record in records)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for record in records:
        table.add_row(*("" if record[column] is None else str(record[column]) for column in columns))
    make_console(stream).print(table)

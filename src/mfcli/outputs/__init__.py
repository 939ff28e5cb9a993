"""Formats: results go in, text comes out. One file each, loaded on use."""

from typing import TextIO

from mfcli.outputs.writer import FormatName, Writer


def open_writer(name: FormatName, stream: TextIO, *, compact: bool = False) -> Writer:
    """Return the writer of a format on a text stream.

    Args:
        name: the format.
        stream: must not translate newlines (table excepted).
        compact: whether a table has one line a picture instead of a small table each.
    """
    match name:
        case FormatName.TABLE:
            from mfcli.outputs.table import LineWriter, TableWriter

            return LineWriter(stream) if compact else TableWriter(stream)
        case FormatName.JSON:
            from mfcli.outputs.json import JsonWriter

            return JsonWriter(stream)
        case FormatName.JSONL:
            from mfcli.outputs.json import JsonLinesWriter

            return JsonLinesWriter(stream)
        case FormatName.CSV:
            from mfcli.outputs.csv import SeparatedWriter

            return SeparatedWriter(stream, ",")
        case FormatName.TSV:
            from mfcli.outputs.csv import SeparatedWriter

            return SeparatedWriter(stream, "\t")

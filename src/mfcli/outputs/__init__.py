"""Output formats and files: results are written row by row, and read back.

One module per format, imported only when it is chosen. A new format is a module here, a member of `FormatName`, and a
case in `open_writer`. The journal of resumable runs, the output file and the reader of results belong here too.
"""

from typing import TYPE_CHECKING, TextIO

from mfcli.outputs.writer import FormatName, LabelType, Writer

if TYPE_CHECKING:
    from mfcli.outputs.pictures import PictureRenderer
    from mfcli.outputs.template import Template


def open_writer(
    format: "FormatName | Template",
    stream: TextIO,
    *,
    compact: bool = False,
    header: bool = True,
    csv_safe: bool = False,
    label_type: LabelType = LabelType.NAME,
    renderer: "PictureRenderer | None" = None,
) -> Writer:
    """Return the writer of a format on a text stream.

    Args:
        format: one of the formats, or a template for each line.
        stream: a text stream that does not translate newlines, except for tables; Parquet is written to its buffer.
        compact: whether the table format writes one line per picture instead of a small table each.
        header: whether CSV and TSV begin with the names of their columns.
        csv_safe: whether cells of CSV and TSV that spreadsheets would compute begin with an apostrophe.
        label_type: what tables show of a class.
        renderer: draws the thumbnail of each result beside its table; None for no pictures.
    """
    match format:
        case FormatName.TABLE:
            from mfcli.outputs.table import LineWriter, TableWriter

            return LineWriter(stream, label_type) if compact else TableWriter(stream, label_type, renderer)
        case FormatName.JSON:
            from mfcli.outputs.json import JsonWriter

            return JsonWriter(stream)
        case FormatName.JSONL:
            from mfcli.outputs.json import JsonLinesWriter

            return JsonLinesWriter(stream)
        case FormatName.CSV:
            from mfcli.outputs.csv import SeparatedWriter

            return SeparatedWriter(stream, ",", header=header, safe=csv_safe)
        case FormatName.TSV:
            from mfcli.outputs.csv import SeparatedWriter

            return SeparatedWriter(stream, "\t", header=header, safe=csv_safe)
        case FormatName.PARQUET:
            from mfcli.outputs.parquet import ParquetWriter

            return ParquetWriter(stream.buffer)
        case _:
            from mfcli.outputs.template import TemplateWriter

            return TemplateWriter(stream, format)

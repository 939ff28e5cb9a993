"""Results back from their files: JSON Lines, JSON, CSV, TSV and Parquet, told apart by content; gzip is undone."""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any, BinaryIO, TypeVar

from mfcli.errors import OutputError
from mfcli.outputs.csv import KEPT, unescape_cell
from mfcli.results import PREDICT_SCHEMA, PictureResult
from mfcli.runs import RunInfo, RunSettings

MAX_ROW_BYTES = 2**26
"""No row is longer: one with all of 21,841 classes has 3 MB."""

NAME_FIELDS = ("input", "input_b64", "member", "run")
"""What names the picture of a row, and the run that it belongs to."""
_Parsed = TypeVar("_Parsed")
_ROW_PREFIX = json.dumps({"schema": PREDICT_SCHEMA}, separators=(",", ":")).encode()[:-1]
_DOCUMENT_HEAD_END = b'"results":[\n'
_CSV_HEADER = re.compile(rb'(?:\xef\xbb\xbf)?"?input"?([,;\t])')
_BAD_ROW = (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error)  # UnicodeError is a ValueError
_UNREADABLE = (OSError, EOFError, zlib.error)


class StoredResults:
    """The results in a file, read anew by each iteration, a row at a time.

    Attributes:
        name: of the file, for messages.
        complete: whether the run went through all its inputs; None where the file does not say. Known after an
            iteration.
        left_out: files of folders and archives that were not taken, by suffix, as far as the file says. Known after an
            iteration.
        run: the run that a JSON document or Parquet names, else an empty dict. Known after an iteration has begun.
    """

    def __init__(self, file: BinaryIO, name: str, settings: RunSettings | None = None) -> None:
        """Find out the format.

        Args:
            file: can be rewound.
            name: of the file, for messages.
            settings: those kept beside the file, which say what CSV and TSV do not.

        Raises:
            OutputError: it has no format that can be read back.
        """
        self.complete: bool | None = None
        self.left_out: dict[str, int] = {}
        self.run: dict[str, Any] = {}
        self.name = name
        self._settings = settings
        self._file = _decompress(file)
        try:
            head = self._file.readline(MAX_ROW_BYTES)
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        self._read: Callable[[], Iterator[dict[str, Any]]]
        if head.startswith(b"PAR1"):
            self._read = self._read_parquet
        elif head.startswith(b"PK"):
            self._read = self._read_npz
        elif header := _CSV_HEADER.match(head):
            separator = header[1].decode()
            self._read = lambda: self._read_separated(separator)
        elif head.endswith(_DOCUMENT_HEAD_END):
            self._read = self._read_document
        elif is_torn(head) or _is_row(head):
            self._read = self._read_lines
        elif head.lstrip().startswith(b"{"):
            self._read = self._read_foreign_document
        else:
            readable = "jsonl, json, parquet, and csv or tsv with their header can"
            raise OutputError(f"{name} holds no results that can be read", readable)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as JSON Lines has them; what CSV and TSV do not say is None.

        Raises:
            OutputError: a row is not one of mf predict.
        """
        for row, _ in self.pairs():
            yield row

    def names(self) -> Iterator[dict[str, Any]]:
        """Yield `input`, `input_b64`, `member` and `run` of each row; of Parquet, nothing else is read.

        Raises:
            OutputError: a row has no name.
        """
        read = partial(self._read_parquet, NAME_FIELDS) if self._read == self._read_parquet else self._read
        yield from self._each(read, lambda row: {name: row[name] for name in NAME_FIELDS})

    def __iter__(self) -> Iterator[PictureResult]:
        """Yield the results.

        Raises:
            OutputError: a row is not one of mf predict.
        """
        for _, result in self.pairs():
            yield result

    def pairs(self) -> Iterator[tuple[dict[str, Any], PictureResult]]:
        """Yield the rows, each with its result.

        Raises:
            OutputError: a row is not one of mf predict.
        """
        yield from self._each(self._read, self._parse)

    def _each(
        self, read: Callable[[], Iterator[dict[str, Any]]], parse: Callable[[dict[str, Any]], _Parsed]
    ) -> Iterator[_Parsed]:
        self._file.seek(0)
        rows = read()
        number = 1
        try:
            while (row := next(rows, None)) is not None:
                yield parse(row)
                number += 1
        except _BAD_ROW as error:
            raise OutputError(
                f"row {number} of {self.name} is not a row of mf predict", "remove that row, or name another file"
            ) from error
        except _UNREADABLE as error:
            raise self._damaged(error) from error

    def _parse(self, row: dict[str, Any]) -> tuple[dict[str, Any], PictureResult]:
        self._complete_row(row)
        run = RunInfo(row["model"], row["weights_sha256"], row["run"], None, None, 0)
        return row, PictureResult.from_dict(row, run)

    def _complete_row(self, row: dict[str, Any]) -> None:
        """Name the run of a row that does not, if the settings are those of its model."""
        if row["run"] is None and self._settings is not None and self._settings.values.get("model") == row["model"]:
            row["weights_sha256"], row["run"] = self._settings.values.get("weights_sha256"), self._settings.run

    def _damaged(self, error: Exception) -> OutputError:
        return OutputError(f"cannot read {self.name}: {error}")

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        for line in read_lines(self._file):
            if is_torn(line) and not _is_row(line):
                self.complete = False
                return
            yield json.loads(line)

    def _read_document(self) -> Iterator[dict[str, Any]]:
        """Read a document as mf writes it, with a line for each row."""
        self.run = _check_run(json.loads(self._file.readline() + b"]}"))
        self.complete = False
        for line in read_lines(self._file):
            if line.startswith(b"],"):
                self._read_summary(json.loads(b"{" + line[2:]))
            elif line.endswith(b"\n"):
                yield json.loads(line.rstrip(b",\n"))

    def _read_foreign_document(self) -> Iterator[dict[str, Any]]:
        """Read a document that another program has written again."""
        document = json.load(self._file)
        self.run = _check_run(document)
        self._read_summary(document)
        yield from document["results"]

    def _read_summary(self, document: dict[str, Any]) -> None:
        summary = document["summary"]
        self.complete, self.left_out = summary.get("complete"), summary.get("left_out", {})

    def _read_parquet(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        from mfcli.outputs.parquet import ParquetRows

        rows = ParquetRows(self._file)
        self.run = rows.run
        if rows.summary:
            self._read_summary({"summary": rows.summary})
        yield from rows.iterate(columns)

    def _read_npz(self) -> Iterator[dict[str, Any]]:
        from mfcli.outputs.features import read_npz_rows

        return read_npz_rows(self._file)

    def _read_separated(self, separator: str) -> Iterator[dict[str, Any]]:
        text = io.TextIOWrapper(self._file, encoding="utf-8-sig", newline="")
        try:
            yield from map(_parse_cells, csv.DictReader(text, delimiter=separator, strict=True))
        finally:
            text.detach()


def _decompress(file: BinaryIO) -> BinaryIO:
    is_compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_compressed:
        return file
    import gzip

    return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # has what is needed of one


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, none longer than a row can be."""
    return iter(lambda: file.readline(MAX_ROW_BYTES), b"")


def is_torn(line: bytes) -> bool:
    """Return whether a line is the beginning of a row, or the zeros that a system crash leaves of one."""
    if line.endswith(b"\n"):
        return False
    is_prefix = line[: len(_ROW_PREFIX)] == _ROW_PREFIX[: len(line)]
    return is_prefix or not line.strip(b"\0")


def _check_run(document: dict[str, Any]) -> dict[str, Any]:
    """Return the run that a document names; raise TypeError if its values are of other types."""
    run: dict[str, Any] = document["run"]
    are_lists = all(isinstance(run.get(name, []), list) for name in ("query", "keep"))
    if not isinstance(run.get("top_k", 0), int) or not are_lists:
        raise TypeError("not a run")
    return run


def _is_row(line: bytes) -> bool:
    try:
        return "input" in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


def _parse_cells(cells: dict[Any, Any]) -> dict[str, Any]:
    """Return the row that the cells of CSV or TSV say.

    Raises:
        ValueError, KeyError: they are not such cells, or too few or too many.
    """
    if None in cells or None in cells.values():
        raise ValueError("too many or too few cells")
    cells = {name: unescape_cell(cell) for name, cell in cells.items()}
    predictions = []
    for rank in count(1):
        if not cells.get(f"class_index_{rank}"):
            break
        predictions.append(
            {
                "rank": rank,
                "class_index": int(cells[f"class_index_{rank}"]),
                "wnid": cells[f"wnid_{rank}"] or None,
                "label": cells[f"label_{rank}"],
                "prob": float(cells[f"prob_{rank}"]),
            }
        )
    return {
        "schema": PREDICT_SCHEMA,
        "input": cells["input"],
        "input_b64": cells.get("input_b64") or None,  # older files have no such column
        "member": cells["member"] or None,
        "status": cells["status"],
        "model": cells["model"],
        "weights_sha256": None,
        "run": None,
        "width": int(cells["width"]) if cells["width"] else None,
        "height": int(cells["height"]) if cells["height"] else None,
        "predictions": predictions,
        "concept": _parse_concept(cells, "concept"),
        "abstained": cells.get("abstained") or None,
        **_parse_match(cells),
        **_parse_kept(cells),
        "error": {"code": cells["error_code"], "message": cells["error_message"]} if cells["error_code"] else None,
    }


def _parse_concept(cells: dict[Any, Any], name: str, suffix: str = "") -> dict[str, Any] | None:
    """Return the concept in the columns of a name; None where there is none, as in older files."""
    if not cells.get(f"{name}{suffix}"):
        return None
    return {
        "wnid": cells[f"{name}_wnid{suffix}"] or None,
        "label": cells[f"{name}{suffix}"],
        "prob": float(cells[f"{name}_prob{suffix}"]),
        "classes": int(cells[f"{name}_classes{suffix}"]),
    }


def _parse_kept(cells: dict[Any, Any]) -> dict[str, Any]:
    kept = {name.removeprefix(KEPT): value or None for name, value in cells.items() if name.startswith(KEPT)}
    return {"kept": kept} if any(kept.values()) else {}


def _parse_match(cells: dict[Any, Any]) -> dict[str, Any]:
    if not cells.get("matches"):
        return {}
    concepts = takewhile(bool, (_parse_concept(cells, "match", f"_{number}") for number in count(1)))
    return {"match": {"matches": cells["matches"] == "True", "concepts": list(concepts)}}

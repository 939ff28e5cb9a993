"""Parquet: the rows of JSON Lines in columns, with nested fields as structs and lists; needs pyarrow.

Rows are written in groups of bounded memory. The metadata holds the run and the summary as JSON.
"""

import contextlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

from mfcli.errors import one_line, package_error
from mfcli.outputs.json import format_kept, format_line
from mfcli.results import PictureResult
from mfcli.runs import RunInfo, Summary

_GROUP_VALUES = 2**16
"""Rows and predictions in a group: 10,922 rows of 5 predictions."""
_BATCH_ROWS = 1024
_OPTIONAL = ("match", "kept")
"""Fields that rows may lack."""
_RUN, _SUMMARY = "mf.run", "mf.summary"


def import_parquet() -> Any:
    """Return the module `pyarrow.parquet`.

    Raises:
        EngineError: pyarrow is not installed.
    """
    try:
        importlib.import_module("pyarrow")
        return importlib.import_module("pyarrow.parquet")
    except Exception as error:  # a broken installation can raise anything
        raise package_error("pyarrow", error, extra="scale") from error


class ParquetWriter:
    """Writes a file of row groups, which ends with the index that readers begin with."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._values = 0

    def begin(self, run: RunInfo) -> None:
        """Write the head of the file; only the results of a search have a column `match`, as with `kept`."""
        metadata = {_RUN: format_line(asdict(run))}
        self._schema = _make_schema(with_match=bool(run.query), keep=run.keep).with_metadata(metadata)
        self._parquet = import_parquet().ParquetWriter(self._file, self._schema)

    def write(self, result: PictureResult) -> None:
        """Keep one row for the next group."""
        row = result.to_dict()
        if result.kept is not None:
            row["kept"] = {name: format_kept(value) for name, value in result.kept.items()}
        self._rows.append(row)
        self._values += 1 + len(result.predictions)
        if self._values >= _GROUP_VALUES:
            self._write_group()

    def end(self, summary: Summary) -> None:
        """Write the last group and the index."""
        self._write_group()
        self._parquet.add_key_value_metadata({_SUMMARY: format_line(asdict(summary))})
        self._parquet.close()

    def _write_group(self) -> None:
        import pyarrow

        if not self._rows:
            return
        try:
            table = pyarrow.Table.from_pylist(self._rows, self._schema)
        except UnicodeEncodeError:  # half a surrogate pair, in rows that another program wrote
            rows = json.loads(format_line(self._rows).encode("utf-8", "replace"))
            table = pyarrow.Table.from_pylist(rows, self._schema)
        self._parquet.write_table(table, row_group_size=len(self._rows))
        self._rows.clear()
        self._values = 0


def _make_schema(*, with_match: bool, keep: Sequence[str]) -> Any:
    import pyarrow

    text, integer, prob = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
    concept = pyarrow.struct({"wnid": text, "label": text, "prob": prob, "classes": integer})
    prediction = {"rank": integer, "class_index": integer, "wnid": text, "label": text, "prob": prob}
    match = {"match": pyarrow.struct({"matches": pyarrow.bool_(), "concepts": pyarrow.list_(concept)})}
    kept = pyarrow.struct(dict.fromkeys(keep, text))
    texts = ("schema", "input", "input_b64", "member", "status", "model", "weights_sha256", "run")
    return pyarrow.schema(
        {
            **dict.fromkeys(texts, text),
            "width": integer,
            "height": integer,
            "predictions": pyarrow.list_(pyarrow.struct(prediction)),
            "concept": concept,
            "abstained": text,
            **(match if with_match else {}),
            **({"kept": kept} if keep else {}),
            "error": pyarrow.struct({"code": text, "message": text}),
        }
    )


class ParquetRows:
    """The rows in a file that `ParquetWriter` or `mf embed` wrote, or another program that kept the columns.

    Attributes:
        run: the run that the metadata names, else an empty dict.
        summary: the counts in the metadata, else an empty dict.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the index at the end of the file.

        Raises:
            EngineError: pyarrow is not installed.
            OSError: the file is damaged.
            KeyError: it lacks a column.
        """
        parquet = import_parquet()
        with _translate_errors():
            self._file = parquet.ParquetFile(file)
        schema = self._file.schema_arrow
        self._has_features = "features" in schema.names
        self.run: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        if self._has_features:
            return
        if missing := set(_make_schema(with_match=False, keep=()).names) - set(schema.names):
            raise KeyError(*missing)
        known = _make_schema(with_match=True, keep=("any",)).names
        self._columns = [name for name in schema.names if name in known]
        metadata = schema.metadata or {}
        self.run = json.loads(metadata.get(_RUN.encode(), b"{}"))
        self.summary = json.loads((self._file.metadata.metadata or {}).get(_SUMMARY.encode(), b"{}"))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as JSON Lines has them; see `iterate`."""
        return self.iterate()

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield these columns of the rows, or all, as JSON Lines has them.

        Raises:
            OSError: the file is damaged.
        """
        with _translate_errors():
            if self._has_features:
                from mfcli.outputs.features import read_parquet_rows

                yield from read_parquet_rows(self._file)
                return
            for batch in self._file.iter_batches(_BATCH_ROWS, columns=columns or self._columns, use_threads=False):
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None or name not in _OPTIONAL}


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into an OSError."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise OSError(one_line(error)) from error

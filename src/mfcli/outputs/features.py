"""Features as .npz (NumPy) or .parquet (needs pyarrow): a row for every input, failures included.

A file is written as a whole: NumPy's format begins with the number of rows, so its rows are held in memory; Parquet's
are written in groups. Both are read back as rows of JSON Lines, so that a run can go on with them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from mfcli.errors import one_line
from mfcli.outputs.parquet import import_parquet
from mfcli.outputs.writer import FeatureFormat, Writer
from mfcli.results import PREDICT_SCHEMA, PictureResult, encode_features
from mfcli.runs import RunInfo, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GROUP_ROWS, _BATCH_ROWS = 8192, 1024
_TEXTS = ("input", "input_b64", "member", "status", "error_code", "error_message")
_SIZES = ("width", "height")
_ORIGIN = ("model", "weights_sha256", "run")


def open_feature_writer(format: FeatureFormat, file: BinaryIO) -> Writer:
    """Return the writer of a format.

    Raises:
        EngineError: pyarrow, which Parquet needs, is not installed.
    """
    if format is FeatureFormat.NPZ:
        return _NpzWriter(file)
    import_parquet()
    return _ParquetWriter(file)


def read_npz_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that `mf embed` wrote.

    Raises:
        OSError: the file is damaged.
        ValueError, KeyError: `mf embed` did not write it.
    """
    from zipfile import BadZipFile

    import numpy as np

    try:
        arrays = dict(np.load(file))
    except (BadZipFile, RuntimeError) as error:  # the latter: encrypted, or compressed in another way
        raise OSError(one_line(error)) from error
    origin = {name: str(arrays.pop(name)) for name in _ORIGIN}
    for values in zip(*(arrays[name].tolist() for name in (*_TEXTS, *_SIZES)), arrays["features"], strict=True):
        yield _make_json_row(dict(zip((*_TEXTS, *_SIZES, "features"), values, strict=True)), origin)


def read_parquet_rows(file: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `ParquetFile` that `mf embed` wrote."""
    origin = {name: file.schema_arrow.metadata[name.encode()].decode() for name in _ORIGIN}
    for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
        for row in batch.to_pylist():
            yield _make_json_row(row, origin)


def _make_json_row(row: dict[str, Any], origin: dict[str, str]) -> dict[str, Any]:
    """Return a row as JSON Lines has it, but for the predictions, which are not kept."""
    is_ok = row["status"] == "ok"
    return {
        "schema": PREDICT_SCHEMA,
        **{name: row[name] or None for name in ("input_b64", "member", "width", "height")},
        **{name: row[name] for name in ("input", "status")},
        **origin,
        "predictions": [],
        **({"features": encode_features(row["features"])} if is_ok else {}),
        "error": None if is_ok else {"code": row["error_code"], "message": row["error_message"]},
    }


def _make_row(result: PictureResult) -> dict[str, Any]:
    error = result.error
    return {
        "input": result.input,
        "input_b64": result.input_b64,
        "member": result.member,
        "status": result.status,
        "width": result.width,
        "height": result.height,
        "features": result.features,
        "error_code": error.code.value if error else None,
        "error_message": error.message if error else None,
    }


class _NpzWriter:
    """Arrays of equal length: texts (empty for none), width and height (0 for none), features (NaN for none)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._run: RunInfo | None = None

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def write(self, result: PictureResult) -> None:
        self._rows.append(_make_row(result))

    def end(self, summary: Summary) -> None:  # noqa: ARG002 - the rows say it
        import numpy as np

        assert self._run is not None  # begin comes first
        columns: dict[str, NDArray[Any]] = {
            name: np.array([row[name] or "" for row in self._rows], np.str_) for name in _TEXTS
        }
        for name in _SIZES:
            columns[name] = np.array([row[name] or 0 for row in self._rows], np.int32)
        columns["features"] = _stack([row["features"] for row in self._rows])
        for name in _ORIGIN:
            columns[name] = np.array(getattr(self._run, name))
        np.savez(self._file, **columns)  # type: ignore[arg-type]  # mypy sees allow_pickle among the arrays


def _stack(rows: "list[NDArray[np.float32] | None]") -> "NDArray[np.float32]":
    import numpy as np

    dim = next((len(row) for row in rows if row is not None), 0)
    nothing = np.full(dim, np.nan, np.float32)
    return np.array([nothing if row is None else row for row in rows], np.float32).reshape(len(rows), dim)


class _ParquetWriter:
    """The rows as a table; features are a list of fixed size, null for a failure."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        self._run: RunInfo | None = None
        self._dim: int | None = None
        self._parquet: Any = None

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def write(self, result: PictureResult) -> None:
        if result.features is not None:
            self._dim = len(result.features)
        self._rows.append(_make_row(result))
        if len(self._rows) >= _GROUP_ROWS and self._dim is not None:
            self._flush()

    def end(self, summary: Summary) -> None:  # noqa: ARG002 - the rows say it
        self._flush()
        self._parquet.close()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = self._make_schema(pyarrow)
        if self._parquet is None:
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, schema)
        self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, schema))
        self._rows.clear()

    def _make_schema(self, pyarrow: Any) -> Any:
        text, number = pyarrow.string(), pyarrow.int32()
        kinds = {"width": number, "height": number, "features": pyarrow.list_(pyarrow.float32(), self._dim or 0)}
        names = ("input", "input_b64", "member", "status", "width", "height", "features", "error_code", "error_message")
        assert self._run is not None  # begin comes first
        origin = {name: getattr(self._run, name) for name in _ORIGIN}
        return pyarrow.schema([(name, kinds.get(name, text)) for name in names], origin)

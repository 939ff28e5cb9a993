"""Parquet: the columns of the rows, groups of bounded size, and other programs that read them."""

import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import CHECKOUT, Ran
from mfcli.errors import FailureCode
from mfcli.outputs.parquet import ParquetRows, ParquetWriter
from mfcli.results import Concept, Failure, Match, PictureResult, Prediction
from mfcli.runs import RunInfo, Summary

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Mf = Callable[..., Ran]
EXAMPLES = CHECKOUT / "examples"
RUN = RunInfo("caformer_s18", "ab" * 32, "0123456789abcdef", "onnxruntime", "fp32", 2, 0.8)
CAT = Concept("n02121620", "cat", 0.91, 7)
OK = PictureResult("a.jpg", None, "b", 6, 4, (Prediction(1, 281, None, "tabby", 0.1 + 0.2),), None, RUN, CAT)
BAD = PictureResult("caf\ufffd", "Y2Fm6Q==", None, None, None, (), Failure(FailureCode.DECODE, "broken"), RUN)


def write(results: list[PictureResult], run: RunInfo = RUN) -> io.BytesIO:
    file = io.BytesIO()
    writer = ParquetWriter(file)
    writer.begin(run)
    for result in results:
        writer.write(result)
    writer.end(Summary(len(results), len(results), 0, True))
    file.seek(0)
    return file


def test_the_columns_are_the_fields_of_the_rows() -> None:
    table = parquet.read_table(write([OK, BAD]))
    assert table.to_pylist() == [OK.to_dict(), BAD.to_dict()]
    assert table.column_names == list(OK.to_dict())
    concept = "struct<wnid: string, label: string, prob: double, classes: int32>"
    prediction = "struct<rank: int32, class_index: int32, wnid: string, label: string, prob: double>"
    assert str(table.schema.field("predictions").type) == f"list<element: {prediction}>"
    assert str(table.schema.field("concept").type) == concept


def test_only_a_search_has_a_column_of_matches() -> None:
    found = replace(OK, match=Match(True, (CAT,)))
    file = write([found, BAD], replace(RUN, query=("cat",)))
    assert parquet.read_table(file).to_pylist()[0] == found.to_dict()
    assert list(ParquetRows(file)) == [found.to_dict(), BAD.to_dict()]  # without a field `match`


@pytest.mark.parametrize(("top_k", "rows"), [(5, 10923), (1000, 66)])
def test_groups_are_of_bounded_size(top_k: int, rows: int) -> None:
    result = replace(OK, predictions=OK.predictions * top_k)
    metadata = parquet.ParquetFile(write([result] * (rows + 1))).metadata
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [rows, 1]


def test_no_rows_and_half_a_surrogate_pair() -> None:
    assert parquet.read_table(write([])).num_rows == 0
    assert [row["input"] for row in ParquetRows(write([replace(OK, input="a\ud800")]))] == ["a?"]


def _read_with_duckdb(path: Path) -> list[tuple[Any, ...]]:
    query = f"select input, predictions[1].label, concept.label, error.code from '{path}'"
    return list(importlib.import_module("duckdb").sql(query).fetchall())


def _read_with_pandas(path: Path) -> list[tuple[Any, ...]]:
    rows = importlib.import_module("pandas").read_parquet(path).to_dict("records")
    return [_pick(row) for row in rows]


def _read_with_polars(path: Path) -> list[tuple[Any, ...]]:
    return [_pick(row) for row in importlib.import_module("polars").read_parquet(path).to_dicts()]


def _pick(row: dict[str, Any]) -> tuple[Any, ...]:
    labels = [prediction["label"] for prediction in row["predictions"]]
    concept, error = row["concept"] or {}, row["error"] or {}
    return row["input"], labels[0] if labels else None, concept.get("label"), error.get("code")


@pytest.mark.parametrize(
    ("package", "read"),
    [("duckdb", _read_with_duckdb), ("pandas", _read_with_pandas), ("polars", _read_with_polars)],
)
def test_other_programs_read_it(package: str, read: Callable[[Path], list[tuple[Any, ...]]], tmp_path: Path) -> None:
    pytest.importorskip(package)
    path = tmp_path / "a.parquet"
    path.write_bytes(write([OK, BAD]).getvalue())
    assert read(path) == [("a.jpg", "tabby", "cat", None), ("caf\ufffd", None, None, "decode")]


def test_the_rows_are_those_of_json_lines(mf: Mf, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    inputs = [EXAMPLES, tmp_path / "missing.jpg"]
    for command in (["predict", *inputs], ["find", "fruit", *inputs]):
        assert mf(*command, "-o", out, "-q", "--overwrite").code == 5
        assert mf("convert", out, "--format", "jsonl").out == mf(*command, "--format", "jsonl", "-q").out
        assert mf("convert", out, "--format", "csv").out == mf(*command, "--format", "csv", "-q").out


@pytest.mark.parametrize("command", [["predict", EXAMPLES], ["convert", "missing.jsonl"]])
def test_pyarrow_is_missed_before_any_work(
    command: list[str], mf: Mf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = mf(*command, "-o", tmp_path / "a.parquet")
    hint = "hint: pip install 'metaformer-cli[scale]'\n"
    assert (ran.code, ran.out, ran.err) == (7, "", f"error: pyarrow is not installed\n{hint}")


def test_what_is_no_file_of_results(mf: Mf, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"input": ["a"]}), tmp_path / "a.parquet")
    ran = mf("convert", tmp_path / "a.parquet")
    assert (ran.code, ran.err.splitlines()[0]) == (
        8,
        f"error: row 1 of {tmp_path / 'a.parquet'} is not a row of mf predict",
    )

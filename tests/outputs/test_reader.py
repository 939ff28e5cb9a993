"""Results back from their files: the same values, from every format and after any cut."""

import gzip
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfcli.errors import FailureCode, OutputError
from mfcli.outputs import open_writer
from mfcli.outputs.reader import StoredResults
from mfcli.outputs.writer import FormatName
from mfcli.results import Abstention, Concept, Failure, PictureResult, Prediction
from mfcli.runs import RunInfo, RunSettings, Summary

RUN = RunInfo("caformer_s18", "ab" * 32, "0123456789abcdef", "onnxruntime", "fp32", 2)
SETTINGS = RunSettings("0123456789abcdef", {"model": "caformer_s18", "weights_sha256": "ab" * 32})
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PROB = st.floats(0, 1)
PREDICTIONS = st.lists(
    st.builds(Prediction, st.just(1), st.integers(0, 999), st.sampled_from([None, "n01"]), TEXT, PROB),
    min_size=1,
    max_size=2,
).map(lambda found: tuple(replace(p, rank=rank) for rank, p in enumerate(found, 1)))
NAMES = {"input": TEXT, "input_b64": st.sampled_from([None, "Y2Fm6Q=="]), "member": st.none() | TEXT.filter(bool)}
SIZE = st.integers(1, 9)
CONCEPT = st.builds(Concept, st.just("n02121620"), TEXT.filter(bool), PROB, SIZE)
RESULTS = st.lists(
    st.builds(
        PictureResult,
        **NAMES,
        width=SIZE,
        height=SIZE,
        predictions=PREDICTIONS,
        error=st.none(),
        run=st.just(RUN),
        concept=st.none() | CONCEPT,
        abstained=st.none() | st.sampled_from(Abstention),
    )
    | st.builds(
        PictureResult,
        **NAMES,
        width=st.none(),
        height=st.none(),
        predictions=st.just(()),
        error=st.builds(Failure, st.sampled_from(FailureCode), TEXT.filter(bool)),
        run=st.just(RUN),
    ),
    max_size=4,
)
READABLE = [FormatName.JSONL, FormatName.JSON, FormatName.CSV, FormatName.TSV, FormatName.PARQUET]


def write(name: FormatName, results: list[PictureResult], complete: bool = True) -> bytes:
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, "utf-8", newline="")
    writer = open_writer(name, stream)
    writer.begin(RUN)
    for result in results:
        writer.write(result)
    writer.end(Summary(len(results), len(results), 0, complete, {".mp4": 3}))
    stream.flush()
    return file.getvalue()


def damage(data: bytes) -> bytes:
    return data[:12] + bytes(32) + data[44:]


def write_npz(flag: bytes = b"\0") -> bytes:
    """Return a file of NumPy; the flag 1 says that it is encrypted."""
    file = io.BytesIO()
    np.savez(file, features=np.zeros(9))
    data = file.getvalue()
    at = data.index(b"PK\1\2")
    return data[:6] + flag + data[7 : at + 8] + flag + data[at + 9 :]


def read(data: bytes, settings: RunSettings | None = SETTINGS) -> list[dict[str, Any]]:
    return list(StoredResults(io.BytesIO(data), "it", settings).rows())


@pytest.mark.parametrize("name", READABLE)
@settings(max_examples=30)
@given(results=RESULTS)
def test_what_was_written_is_read(name: FormatName, results: list[PictureResult]) -> None:
    stored = StoredResults(io.BytesIO(write(name, results)), "it", SETTINGS)
    bare = replace(RUN, engine=None, precision=None, top_k=0)
    for _ in range(2):
        assert list(stored) == [replace(result, run=bare) for result in results]
    assert read(gzip.compress(write(name, results))) == [result.to_dict() for result in results]


ROW = PictureResult("a", None, None, 1, 2, (Prediction(1, 5, "n1", "cat", 0.5),), None, RUN)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_says_whether_it_is_complete(indent: int | None, complete: bool) -> None:
    document = write(FormatName.JSON, [ROW, ROW], complete)
    for data in (document, json.dumps(json.loads(document), indent=indent).encode()):
        stored = StoredResults(io.BytesIO(data), "it")
        assert list(stored.rows()) == [ROW.to_dict()] * 2
        assert (stored.complete, stored.left_out) == (complete, {".mp4": 3})
        assert stored.run["engine"] == "onnxruntime"


@pytest.mark.parametrize("name", [FormatName.JSONL, FormatName.JSON])
def test_the_rows_before_a_cut_are_read(name: FormatName) -> None:
    data = write(name, [ROW, ROW])
    stored = StoredResults(io.BytesIO(data[: data.rindex(b'"predictions"')]), "it")
    assert list(stored.rows()) == [ROW.to_dict()]
    assert stored.complete is False


def test_csv_without_the_last_columns_and_from_a_spreadsheet() -> None:
    text = write(FormatName.CSV, [ROW]).decode()
    older = text.replace(",input_b64,abstained", "").replace(",,\n", "\n")
    for data in (text, older, "\ufeff" + text, text.replace(",", ";"), text.replace("\n", "\r\n")):
        assert read(data.encode()) == [ROW.to_dict()]
    assert read(text.encode(), None) == [ROW.to_dict() | {"weights_sha256": None, "run": None}]
    assert read(text.encode(), replace(SETTINGS, values={"model": "other"}))[0]["run"] is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello\n", "it holds no results that can be read"),
        (b"a.jpg,,ok,caformer_s18,1,1,cat,n1,5,0.5,,,\n", "it holds no results that can be read"),
        (b'{"a":1}\n', "row 1 of it is not a row of mf predict"),
        (b"{" * 100_000, "row 1 of it is not a row of mf predict"),
        (write(FormatName.JSONL, [ROW]) + b"more\n", "row 2 of it is not a row of mf predict"),
        (write(FormatName.JSONL, [ROW]).replace(b'"ok"', b'"error"'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b'"n1"', b'{"n":1}'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b"0.5", b'"half"'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b"0.5", b"NaN"), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b'"rank":1', b'"rank":"1st"'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b'"width":1', b'"width":"1 px"'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b'"member":null', b'"member":7'), "row 1 of it is not"),
        (write(FormatName.JSONL, [ROW]).replace(b'"0123456789abcdef"', b"[1]"), "row 1 of it is not"),
        (write(FormatName.JSON, [ROW]).replace(b'"top_k":2', b'"top_k":"2"'), "row 1 of it is not"),
        (write(FormatName.JSON, [ROW]).replace(b'"query":[]', b'"query":5'), "row 1 of it is not"),
        (b'{"run":null,"results":[],"summary":{}}', "row 1 of it is not"),
        (write(FormatName.CSV, [ROW, ROW])[:-20], "row 2 of it is not a row of mf predict"),
        (write(FormatName.CSV, [ROW]).replace(b"0.5", b"half"), "row 1 of it is not"),
        (gzip.compress(write(FormatName.CSV, [ROW]))[:-9], "cannot read it: "),
        (damage(gzip.compress(write(FormatName.CSV, [ROW]))), "cannot read it: "),
        (write_npz()[:-9], "cannot read it: File is not a zip file"),
        (write_npz(b"\1"), "cannot read it: File 'features.npy' is encrypted"),
        (write_npz(), "row 1 of it is not a row of mf predict"),
        (write(FormatName.PARQUET, [ROW])[:-9], "cannot read it: Parquet magic bytes not found"),
        (damage(write(FormatName.PARQUET, [ROW])), "cannot read it: "),
    ],
)
def test_what_is_not_a_result_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        read(data)

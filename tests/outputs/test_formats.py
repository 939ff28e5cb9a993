"""Formats: the complete output of a run with awkward names and values."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mfcli.errors import FailureCode
from mfcli.outputs import open_writer
from mfcli.outputs.csv import escape_cell, unescape_cell
from mfcli.outputs.json import format_document, format_line
from mfcli.outputs.records import write_records
from mfcli.outputs.table import write_table
from mfcli.outputs.writer import FormatName, LabelType, RecordFormat
from mfcli.results import Abstention, Concept, Failure, PictureResult, Prediction
from mfcli.runs import RunInfo, Summary

RUN = RunInfo("caformer_s18", "ab" * 32, "0123456789abcdef", "onnxruntime", "fp32", 2, 0.8)
OK = PictureResult(
    'a "b",\tc\n\r.jpg',
    None,
    None,
    640,
    480,
    (Prediction(1, 281, "n02123045", "tabby, tabby cat", 0.1 + 0.2), Prediction(2, 0, None, "\u00e9t\u00e9", 1e-20)),
    None,
    RUN,
    Concept("n02121620", "cat", 0.9 + 0.01, 7),
    abstained=Abstention.UNSURE,
)
BAD = PictureResult("caf\ufffd", "Y2Fm6Q==", None, None, None, (), Failure(FailureCode.DECODE, 'broken "here"'), RUN)


def write_run(name: FormatName, *results: PictureResult) -> str:
    stream = io.StringIO(newline="")
    writer = open_writer(name, stream)
    writer.begin(RUN)
    for result in results:
        writer.write(result)
    failed = sum(result.error is not None for result in results)
    writer.end(Summary(len(results), len(results) - failed, failed, True))
    return stream.getvalue()


ROWS: list[dict[str, Any]] = [
    {
        "schema": "mf.predict/1",
        "input": 'a "b",\tc\n\r.jpg',
        "input_b64": None,
        "member": None,
        "status": "ok",
        "model": "caformer_s18",
        "weights_sha256": "ab" * 32,
        "run": "0123456789abcdef",
        "width": 640,
        "height": 480,
        "predictions": [
            {
                "rank": 1,
                "class_index": 281,
                "wnid": "n02123045",
                "label": "tabby, tabby cat",
                "prob": 0.30000000000000004,
            },
            {"rank": 2, "class_index": 0, "wnid": None, "label": "\u00e9t\u00e9", "prob": 1e-20},
        ],
        "concept": {"wnid": "n02121620", "label": "cat", "prob": 0.91, "classes": 7},
        "abstained": "unsure",
        "error": None,
    },
    {
        "schema": "mf.predict/1",
        "input": "caf\ufffd",
        "input_b64": "Y2Fm6Q==",
        "member": None,
        "status": "error",
        "model": "caformer_s18",
        "weights_sha256": "ab" * 32,
        "run": "0123456789abcdef",
        "width": None,
        "height": None,
        "predictions": [],
        "concept": None,
        "abstained": None,
        "error": {"code": "decode", "message": 'broken "here"'},
    },
]


@pytest.mark.parametrize(
    ("text", "cell", "safe"),
    [
        ("a\x1b[2J.jpg", r"a\x1b[2J.jpg", None),
        ("a\0\x85\x9b\u2028\u2029", r"a\x00\x85\x9b\u2028\u2029", None),
        ("a\tb\nc\rd", "a\tb\nc\rd", None),
        (r"a\x1b", r"a\\x1b", None),
        ("a\\\\\x1b", r"a\\\\\x1b", None),
        (r"\\server\new", r"\\server\new", None),
        ("=1+1", "=1+1", "'=1+1"),
        ("@a", "@a", "'@a"),
        ("'=1", r"\x27=1", r"\x27=1"),
        ("'a", "'a", "'a"),
        ("-", "-", "'-"),
    ],
)
def test_cells_are_safe_and_read_back(text: str, cell: str, safe: str | None) -> None:
    assert (escape_cell(text), escape_cell(text, safe=True)) == (cell, safe or cell)
    assert {unescape_cell(escape_cell(text, safe=is_safe)) for is_safe in (False, True)} == {text}


@given(st.text(alphabet="\\xu1b'=\x1b\0\u2028a"), st.booleans())
def test_every_cell_is_read_back(text: str, safe: bool) -> None:
    assert unescape_cell(escape_cell(text, safe=safe)) == text


def test_json_escapes_control_characters() -> None:
    value = {"input": "a\x1b\x7f\x85\x9b\u2028\u2029\u00e9"}
    for text in (format_line(value), format_document(value)):
        assert json.loads(text) == value
        assert [c for c in text if not c.isprintable()] == [c for c in text if c == "\n"]


def test_jsonl() -> None:
    lines = write_run(FormatName.JSONL, OK, BAD).split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == ROWS
    assert [list(json.loads(line)) for line in lines] == [list(row) for row in ROWS]


def test_json() -> None:
    document = json.loads(write_run(FormatName.JSON, OK, BAD))
    assert list(document) == ["schema", "run", "results", "summary"]
    assert document["results"] == ROWS
    assert document["run"] == {
        "model": "caformer_s18",
        "weights_sha256": "ab" * 32,
        "run": "0123456789abcdef",
        "engine": "onnxruntime",
        "precision": "fp32",
        "top_k": 2,
        "confidence": 0.8,
        "query": [],
        "keep": [],
    }
    assert document["summary"] == {"inputs": 2, "ok": 1, "failed": 1, "complete": True, "left_out": {}}
    assert json.loads(write_run(FormatName.JSON))["results"] == []


HEADER = [
    "input",
    "member",
    "status",
    "model",
    "width",
    "height",
    "label_1",
    "wnid_1",
    "class_index_1",
    "prob_1",
    "label_2",
    "wnid_2",
    "class_index_2",
    "prob_2",
    "concept",
    "concept_wnid",
    "concept_prob",
    "concept_classes",
    "error_code",
    "error_message",
    "input_b64",
    "abstained",
]
CELLS = [
    'a "b",\tc\n\r.jpg||ok|caformer_s18|640|480|tabby, tabby cat|n02123045|281|0.30000000000000004'
    "|\u00e9t\u00e9||0|1e-20|cat|n02121620|0.91|7||||unsure",
    'caf\ufffd||error|caformer_s18|||||||||||||||decode|broken "here"|Y2Fm6Q==|',
]


@pytest.mark.parametrize(("name", "separator"), [(FormatName.CSV, ","), (FormatName.TSV, "\t")])
def test_csv_and_tsv_round_trip(name: FormatName, separator: str) -> None:
    text = write_run(name, OK, BAD)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    assert rows == [HEADER, *(cells.split("|") for cells in CELLS)]
    assert text.endswith("\n")


def test_csv_quotes_only_where_necessary() -> None:
    plain = PictureResult("a.jpg", None, None, 1, 2, (Prediction(1, 5, "n1", "cat", 0.5),), None, RUN)
    row = write_run(FormatName.CSV, plain).splitlines()[1]
    assert row == "a.jpg,,ok,caformer_s18,1,2,cat,n1,5,0.5,,,,,,,,,,,,"


def test_table() -> None:
    assert write_run(FormatName.TABLE, OK, BAD) == (
        'a "b",\\tc\\n\\r.jpg  640x480\n'
        "cat 91.0%\n"
        "unsure: too many answers of this probability are wrong\n"
        "╭───┬───────┬───────┬──────────────────────╮\n"
        "│ # │ label │  prob │                      │\n"
        "├───┼───────┼───────┼──────────────────────┤\n"
        "│ 1 │ tabby │ 30.0% │ ██████               │\n"
        "│ 2 │ été   │  0.0% │                      │\n"
        "╰───┴───────┴───────┴──────────────────────╯\n"
        'caf\ufffd: broken "here"\n'
        "2 pictures: 1 classified, 1 failed\n"
    )


def test_summary_in_singular_and_plural() -> None:
    assert Summary(1, 1, 0, True).in_words() == "1 picture: 1 classified"
    assert Summary(2, 0, 2, True).in_words() == "2 pictures: 0 classified, 2 failed"
    assert Summary(2, 2, 0, False).in_words() == "2 pictures: 2 classified; incomplete"


def test_control_characters_are_escaped() -> None:
    evil = PictureResult(
        "\x1b[31mred\x07[bold].jpg", None, None, 1, 1, (), Failure(FailureCode.DECODE, "\x1b]0;x\x07"), RUN
    )
    assert write_run(FormatName.TABLE, evil) == "\\x1b[31mred\\x07[bold].jpg: \\x1b]0;x\\x07\n"


def test_a_pipe_gets_uncut_rows() -> None:
    long = PictureResult("x" * 300, None, None, 1, 1, (Prediction(1, 0, None, "y" * 200, 1.0),), None, RUN)
    text = write_run(FormatName.TABLE, long)
    assert "x" * 300 + "  1x1\n" in text
    assert "y" * 200 + " │ 100.0% │ ████████████████████ │\n" in text
    predictions = tuple(Prediction(rank, rank, None, "y" * 200, 0.0) for rank in range(1, 1001))
    stream = io.StringIO()
    open_writer(FormatName.TABLE, stream, compact=True).write(replace(long, predictions=predictions))
    assert len(stream.getvalue()) > 200_000
    assert stream.getvalue().count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal of that width, without colours."""
    for name, value in (("COLUMNS", str(columns)), ("NO_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    return Terminal()


@pytest.mark.parametrize(("compact", "line"), [(False, "a.jpg  9x8"), (True, "a.jpg")])
def test_a_result_without_predictions_is_a_name(compact: bool, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make_terminal(80, monkeypatch)
    open_writer(FormatName.TABLE, stream, compact=compact).write(
        PictureResult("a.jpg", None, None, 9, 8, (), None, RUN)
    )
    assert without_styles(stream) == [line]


@pytest.mark.parametrize("columns", [1, 12, 20, 40, 63, 64, 80])
def test_a_narrow_terminal_folds_labels(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make_terminal(columns, monkeypatch)
    writer = open_writer(FormatName.TABLE, stream)
    writer.begin(RUN)
    label = "cougar, puma, catamount, mountain lion, painter, panther"
    writer.write(
        PictureResult(
            "some/long/path/of/a/picture.jpg", None, None, 9, 9, (Prediction(1, 0, None, label, 0.5),), None, RUN
        )
    )
    lines = without_styles(stream)
    assert max(map(len, lines)) <= max(columns, 20)
    shown = "".join(line.split("│")[2].strip().replace(" ", "") for line in lines if line.count("│") >= 4)
    assert label.replace(" ", "") in shown


def write_lines(columns: int, monkeypatch: pytest.MonkeyPatch, *results: PictureResult) -> list[str]:
    """Return what a terminal of that width shows, one line per picture."""
    stream = make_terminal(columns, monkeypatch)
    writer = open_writer(FormatName.TABLE, stream, compact=True)
    writer.begin(RUN)
    for result in results:
        writer.write(result)
    return without_styles(stream)


def without_styles(stream: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (80, "a picture.jpg  bell pepper 25.0%  bell pepper 25.0%  bell pepper 25.0%"),
        (0, "a picture.jpg  bell pepper 25.0%  bell pepper 25.0%  bell pepper 25.0%"),
        (50, "a picture.jpg  bell pepper 25.0%"),
        (30, "a picture.jpg  bell pep… 25.0%"),
        (20, "…cture.jpg  b… 25.0%"),
    ],
)
def test_lines_show_the_predictions_that_fit_whole(
    columns: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = tuple(Prediction(rank, rank, None, "bell pepper", 0.25) for rank in range(1, 8))
    result = PictureResult("a picture.jpg", None, None, 9, 9, predictions, None, RUN)
    assert write_lines(columns, monkeypatch, result) == [expected]


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
@pytest.mark.parametrize("letter", ["x", "写", "🍋", "é", "👩\u200d🚀"])
def test_the_first_probability_is_whole(columns: int, letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = PictureResult(f"{letter * 300}/7.jpg", None, None, 9, 9, (Prediction(1, 0, None, "pear", 1.0),), None, RUN)
    wordy = replace(long, predictions=(replace(long.predictions[0], label=letter * 300),))
    failed = replace(long, predictions=(), error=Failure(FailureCode.DECODE, "cannot be decoded"))
    lines = write_lines(columns, monkeypatch, long, wordy, failed)
    assert all(line.startswith("…") and "7.jpg  " in line for line in lines)
    assert [line.endswith(" 100.0%") for line in lines] == [True, True, False]
    assert max(map(cell_len, lines[:2])) <= columns
    assert cell_len(lines[2]) <= max(columns, 30)
    assert lines[2].endswith("  cannot be decoded")


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("label_type", "wordnet", "own"),
    [
        (LabelType.NAME, "tabby", "red, round"),
        (LabelType.WNID, "n02123045", "red, round"),
        (LabelType.INDEX, "281", "1"),
    ],
)
def test_what_tables_show_of_a_class(label_type: LabelType, wordnet: str, own: str, compact: bool) -> None:
    predictions = (OK.predictions[0], Prediction(2, 1, None, "red, round", 0.25))
    result = replace(OK, predictions=predictions, concept=None)
    stream = io.StringIO()
    open_writer(FormatName.TABLE, stream, compact=compact, label_type=label_type).write(result)
    assert re.findall(r"(?:  |│ [12] │ )(\S[^│]*?) +(?:│ )?[\d.]+%", stream.getvalue()) == [wordnet, own]


@pytest.mark.parametrize(
    ("label_type", "wnid", "shown"),
    [
        (LabelType.NAME, "n02121620", "cat 91.0%"),
        (LabelType.WNID, "n02121620", "n02121620 91.0%"),
        (LabelType.NAME, "n02123045", None),  # the first class
    ],
)
def test_a_table_has_a_concept_above_it(label_type: LabelType, wnid: str, shown: str | None) -> None:
    stream = io.StringIO()
    result = replace(OK, concept=Concept(wnid, "cat", 0.91, 7), abstained=None)
    open_writer(FormatName.TABLE, stream, label_type=label_type).write(result)
    line = stream.getvalue().splitlines()[1]
    assert line == shown if shown else line.startswith("╭")


def test_records_keep_their_types_in_json() -> None:
    stream = io.StringIO()
    write_records(RecordFormat.JSONL, stream, [{"depths": (3, 9), "params": 12}])
    write_records(RecordFormat.CSV, stream, [{"depths": (3, 9), "params": 12}])
    assert stream.getvalue() == '{"depths":[3,9],"params":12}\ndepths,params\n3 9,12\n'


def test_records_in_every_format() -> None:
    records: list[dict[str, Any]] = [{"name": "a", "value": 1.5}, {"name": "[b],c", "value": None}]

    def text(name: RecordFormat, rows: list[Any]) -> str:
        stream = io.StringIO()
        write_records(name, stream, rows)
        return stream.getvalue()

    assert json.loads(text(RecordFormat.JSON, records)) == records
    assert [json.loads(line) for line in text(RecordFormat.JSONL, records).splitlines()] == records
    assert text(RecordFormat.CSV, records) == 'name,value\na,1.5\n"[b],c",\n'
    assert text(RecordFormat.TSV, records) == "name\tvalue\na\t1.5\n[b],c\t\n"
    assert text(RecordFormat.CSV, []) == ""
    assert all(line == line.rstrip() for line in text(RecordFormat.TABLE, records).splitlines())
    assert [line.split() for line in text(RecordFormat.TABLE, records).splitlines()] == [
        ["name", "value"],
        ["a", "1.5"],
        ["[b],c"],
    ]


RECORD = {
    "name": "caformer_s18_384",
    "size_bytes": "105",
    "top1": "83.6",
    "path": "/cache/写真写真/caformer.pth",
    "note": "",
}
NARROW = {
    80: [
        " name              size_bytes  top1  path                          note",
        " caformer_s18_384         105  83.6  /cache/写真写真/caformer.pth",
    ],
    60: [
        "                  size",
        "name             bytes top1 path                        note",
        "caformer_s18_384   105 83.6 /cache/写真写真/caformer.pt",
        "                            h",
    ],
    50: [
        "name             top1 path                    note",
        "caformer_s18_384 83.6 /cache/写真写真/caforme",
        "                      r.pth",
    ],
    40: [
        "name        caformer_s18_384",
        "size_bytes  105",
        "top1        83.6",
        "path        /cache/写真写真/caformer.pth",
    ],
    20: [
        "name        caformer",
        "            _s18_384",
        "size_bytes  105",
        "top1        83.6",
        "path        /cache/",
        "            写真写真",
        "            /caforme",
        "            r.pth",
    ],
}


@pytest.mark.parametrize("columns", NARROW)
def test_records_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make_terminal(columns, monkeypatch)
    write_table(stream, [RECORD], optional=("not_here", "size_bytes"))
    assert without_styles(stream) == NARROW[columns]
    assert max(map(cell_len, NARROW[columns])) <= columns

"""Templates: lines from the values of a result, and what is refused before any work."""

import io
from dataclasses import replace

import pytest

from mfcli.errors import FailureCode, UsageError
from mfcli.outputs import open_writer
from mfcli.outputs.template import FIELDS, Template
from mfcli.results import Failure, PictureResult, Prediction
from mfcli.runs import RunInfo

RUN = RunInfo("caformer_s18", "ab" * 32, "0123456789abcdef", "onnxruntime", "fp32", 1)
OK = PictureResult("a/{b}.jpg", None, None, 640, 480, (Prediction(1, 281, "n02123045", "cat", 0.8765),), None, RUN)
BAD = PictureResult("c.jpg", None, "m", None, None, (), Failure(FailureCode.DECODE, "no\npicture"), RUN)


@pytest.mark.parametrize(
    ("text", "ok", "bad"),
    [
        (r"{input}\t{label}\t{prob:.2f}", "a/{b}.jpg\tcat\t0.88", "c.jpg\t\t"),
        (r"{{{class_index:05d}}}\\n\q{wnid}", "{00281}\\n\\qn02123045", "{}\\n\\q"),
        ("{label:>5}|{width}x{height}", "  cat|640x480", "     |x"),
        ("{member}{status} {model} {prob:.1%}", "ok caformer_s18 87.6%", "merror caformer_s18 "),
        ("{error_code}: {error_message}", ": ", "decode: no\\npicture"),
    ],
)
def test_lines(text: str, ok: str, bad: str) -> None:
    stream = io.StringIO(newline="")
    writer = open_writer(Template(text), stream)
    for result in (OK, BAD):
        writer.write(result)
    assert stream.getvalue() == f"{ok}\n{bad}\n"


def test_a_name_neither_breaks_a_line_nor_controls_a_terminal() -> None:
    assert Template("{input}").format(replace(OK, input="a\n\x1b[31m")) == r"a\n\x1b[31m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{nmae}", "a template has no field {nmae}"),
        ("{input.__class__}", "a template has no field {input.__class__}"),
        ("{input[0]}", r"a template has no field {input\[0\]}"),
        ("{}", "a template has no field {}"),
        ("{0}", "a template has no field {0}"),
        ("{input", "is not a format string"),
        ("{label:.2f}", "{label:.2f} cannot be formatted"),
        ("{prob:d}", "{prob:d} cannot be formatted"),
        ("{label!r}", "{label!r:} cannot be formatted"),
        ("{label:{prob}}", "cannot be formatted"),
        ("{label:9999999999}", "cannot be formatted"),
        ("", "template='' names no field"),
        ("label", "template='label' names no field"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Template(text)
    if "no field" in message and "names" not in message:
        assert caught.value.hint == f"one of {', '.join(FIELDS)}"

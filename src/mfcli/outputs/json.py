"""JSON Lines, one object per picture, and JSON, one document per run; both stream with full float precision."""

import json
import re
from dataclasses import asdict
from typing import Any, TextIO

from mfcli.results import PREDICT_SCHEMA, PictureResult
from mfcli.runs import RunInfo, Summary

_CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029]")
"""Control characters that JSON allows, but that a terminal obeys, or some readers take for the end of a line."""


def format_line(value: Any) -> str:
    """Return compact JSON on one line; control characters are escaped, other non-ASCII characters are not."""
    return _escape(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def format_document(value: Any) -> str:
    """Return JSON over several lines, readable for people too."""
    return _escape(json.dumps(value, ensure_ascii=False, indent=1)) + "\n"


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)  # they occur in strings alone


def format_kept(value: Any) -> str | None:
    """Return a value that a row keeps as text: JSON, or the text itself; None for null."""
    return value if value is None or isinstance(value, str) else format_line(value)


class JsonLinesWriter:
    """One object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, run: RunInfo) -> None:
        """Write nothing: every line names its run."""

    def write(self, result: PictureResult) -> None:
        """Write one line."""
        self._stream.write(format_line(result.to_dict()) + "\n")

    def end(self, summary: Summary) -> None:
        """Write nothing: every line is complete."""


class JsonWriter:
    """One document: schema, run, results, and last the summary, which is known only at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._separator = "\n"

    def begin(self, run: RunInfo) -> None:
        """Open the document."""
        head = format_line({"schema": PREDICT_SCHEMA, "run": asdict(run)})
        self._stream.write(head[:-1] + ',"results":[')

    def write(self, result: PictureResult) -> None:
        """Write one element of `results`."""
        self._stream.write(self._separator + format_line(result.to_dict()))
        self._separator = ",\n"

    def end(self, summary: Summary) -> None:
        """Close the document."""
        counts = asdict(summary)
        del counts["finished_before"]  # its rows are in this document as well
        self._stream.write('\n],"summary":' + format_line(counts) + "}\n")

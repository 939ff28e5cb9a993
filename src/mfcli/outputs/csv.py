r"""CSV and TSV: one row per picture, the same columns in every row of a run.

Control characters but tab and line ends are escaped as in tables (`\x1b`), and so are the backslashes before what looks
like such an escape: what is written can be read back exactly.
"""

import csv
import re
from typing import TextIO

from mfcli.outputs.json import format_kept
from mfcli.results import Concept, PictureResult
from mfcli.runs import RunInfo, Summary

KEPT = "kept_"
"""Begins the names of the columns that a run keeps of its inputs."""

_CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029"
_ESCAPE = "x[0-9a-f]{2}|u[0-9a-f]{4}"
_UNSAFE = re.compile(rf"[{_CONTROLS}]|\\(?=\\*(?:[{_CONTROLS}]|{_ESCAPE}))|\A'(?=[=+\-@\t\r])")
_ESCAPED = re.compile(rf"(\\+)({_ESCAPE})")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets compute."""


def escape_cell(text: str, *, safe: bool = False) -> str:
    """Return a cell without control characters.

    Args:
        text: the cell.
        safe: whether what a spreadsheet would compute begins with an apostrophe.
    """
    text = _UNSAFE.sub(_escape_character, text)
    return f"'{text}" if safe and text.startswith(_FORMULA) else text


def _escape_character(match: re.Match[str]) -> str:
    return r"\x27" if match[0] == "'" else match[0].encode("unicode_escape").decode()


def unescape_cell(text: str) -> str:
    """Return what `escape_cell` was given."""
    if text[:1] == "'" and text[1:].startswith(_FORMULA):
        text = text[1:]
    return _ESCAPED.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    slashes, is_escape = divmod(len(match[1]), 2)
    return "\\" * slashes + (chr(int(match[2][1:], 16)) if is_escape else match[2])


class SeparatedWriter:
    """Separated values, quoted where necessary; rows end with a line feed."""

    def __init__(self, stream: TextIO, separator: str, *, header: bool = True, safe: bool = False) -> None:
        self._header = header
        self._safe = safe
        self._minimal = csv.writer(stream, delimiter=separator, lineterminator="\n")
        self._quoting = csv.writer(stream, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def begin(self, run: RunInfo) -> None:
        """Write the header, if one is wanted."""
        self._run = run
        if not self._header:
            return
        columns = ["input", "member", "status", "model", "width", "height"]
        for rank in range(1, run.top_k + 1):
            columns += [f"label_{rank}", f"wnid_{rank}", f"class_index_{rank}", f"prob_{rank}"]
        columns += ["concept", "concept_wnid", "concept_prob", "concept_classes"]
        if run.query:
            columns.append("matches")
        for number, _ in enumerate(run.query, start=1):
            columns += [f"match_{number}", f"match_wnid_{number}", f"match_prob_{number}", f"match_classes_{number}"]
        columns += [f"{KEPT}{name}" for name in run.keep]
        self._write([*columns, "error_code", "error_message", "input_b64", "abstained"])

    def write(self, result: PictureResult) -> None:
        """Write one row; missing values are empty cells."""
        cells: list[object] = [
            result.input,
            result.member,
            result.status,
            result.run.model,
            result.width,
            result.height,
        ]
        for prediction in result.predictions:
            cells += [prediction.label, prediction.wnid, prediction.class_index, prediction.prob]
        cells += [None] * (4 * (self._run.top_k - len(result.predictions)))
        cells += _list_cells(result.concept)
        if self._run.query:
            cells.append(result.match and result.match.matches)
            for concept in result.match.concepts if result.match else [None] * len(self._run.query):
                cells += _list_cells(concept)
        cells += [format_kept((result.kept or {}).get(name)) for name in self._run.keep]
        cells += [result.error.code.value, result.error.message] if result.error else [None, None]
        self._write([*cells, result.input_b64, result.abstained and result.abstained.value])

    def _write(self, cells: list[object]) -> None:
        cells = [escape_cell(cell, safe=self._safe) if isinstance(cell, str) else cell for cell in cells]
        # the csv module does not quote a lone carriage return, which readers take for the end of a row
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (self._quoting if has_return else self._minimal).writerow(cells)

    def end(self, summary: Summary) -> None:
        """Write nothing: every row is complete."""


def _list_cells(concept: Concept | None) -> list[object]:
    return [concept.label, concept.wnid, concept.prob, concept.classes] if concept else [None] * 4

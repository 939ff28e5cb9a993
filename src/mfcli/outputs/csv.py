"""CSV and TSV: one row per picture, the same columns in every row of a run."""

import csv
from typing import TextIO

from mfcli.outputs.json import format_kept
from mfcli.results import Concept, PictureResult, RunInfo, Summary

KEPT = "kept_"
"""Begins the names of the columns that a run keeps of its inputs."""


class SeparatedWriter:
    """Separated values, quoted where necessary; rows end with a line feed."""

    def __init__(self, stream: TextIO, separator: str, *, header: bool = True) -> None:
        self._header = header
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
        # the csv module does not quote a lone carriage return, which readers take for the end of a row
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (self._quoting if has_return else self._minimal).writerow(cells)

    def end(self, summary: Summary) -> None:
        """Write nothing: every row is complete."""


def _list_cells(concept: Concept | None) -> list[object]:
    return [concept.label, concept.wnid, concept.prob, concept.classes] if concept else [None] * 4

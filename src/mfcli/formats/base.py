"""What a format is: a writer that turns a run's results into text, one after another."""

from enum import StrEnum
from typing import Protocol

from mfcli.results import PictureResult, RunInfo, Summary


class FormatName(StrEnum):
    """The formats of `mf predict`."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


class Writer(Protocol):
    """Writes one run to a text stream; made by `formats.open_writer`."""

    def begin(self, run: RunInfo) -> None:
        """Write what comes before the first result."""
        ...

    def write(self, result: PictureResult) -> None:
        """Write one result."""
        ...

    def end(self, summary: Summary) -> None:
        """Write what comes after the last result; also called when the run was interrupted."""
        ...

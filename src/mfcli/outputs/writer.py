"""What a format is: a writer that turns a run's results into text, one after another."""

from collections.abc import Callable
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


class NotifyingWriter:
    """A writer before whose answers, should there be any, something is said."""

    def __init__(self, writer: Writer, say: Callable[[], None]) -> None:
        self._writer = writer
        self._say = say

    def begin(self, run: RunInfo) -> None:
        """Pass it on."""
        self._writer.begin(run)

    def write(self, result: PictureResult) -> None:
        """Pass it on, after it is said."""
        if result.error is None:
            self._say()
        self._writer.write(result)

    def end(self, summary: Summary) -> None:
        """Pass it on."""
        self._writer.end(summary)

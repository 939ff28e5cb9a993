"""The interface of output formats: a writer gets the results of a run one after another."""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from mfcli.results import PictureResult
from mfcli.runs import RunInfo, Summary


class FormatName(StrEnum):
    """The formats of `mf predict`."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


class FeatureFormat(StrEnum):
    """The formats of `mf embed`."""

    NPZ = "npz"
    PARQUET = "parquet"


class RecordFormat(StrEnum):
    """The formats of the other commands' records, such as rows of the registry."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


class LabelType(StrEnum):
    """What tables show of a class; the other formats have all of it."""

    NAME = "name"
    WNID = "wnid"
    INDEX = "index"


class Writer(Protocol):
    """Writes the results of one run to a text stream; `open_writer` returns one."""

    def begin(self, run: RunInfo) -> None:
        """Write what comes before the first result."""
        ...

    def write(self, result: PictureResult) -> None:
        """Write one result."""
        ...

    def end(self, summary: Summary) -> None:
        """Write what comes after the last result; also called after an interrupt."""
        ...


class MappingWriter:
    """Passes everything on to a writer, and each result through a function before."""

    def __init__(self, writer: Writer, function: Callable[[PictureResult], PictureResult]) -> None:
        self._writer = writer
        self._function = function

    def begin(self, run: RunInfo) -> None:
        """Pass it on."""
        self._writer.begin(run)

    def write(self, result: PictureResult) -> None:
        """Pass on what the function makes of it."""
        self._writer.write(self._function(result))

    def end(self, summary: Summary) -> None:
        """Pass it on."""
        self._writer.end(summary)

"""A file of results that appears whole: rows are journalled beside it until the run is complete."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from mfcli.errors import OutputError
from mfcli.outputs.files import atomic_output, has_content, partial_path
from mfcli.outputs.journal import Journal
from mfcli.outputs.json import JsonLinesWriter
from mfcli.outputs.writer import Writer
from mfcli.results import PictureResult
from mfcli.runs import RunInfo, RunSettings, Summary


class ResultFile:
    """Writes rows into `FILE.partial`, JSON Lines that can be resumed, and makes FILE from it when the run is complete.

    Attributes:
        partial: the path of `FILE.partial`.
        journal: knows which inputs are finished.
        retry_writer: gets the results of inputs that had failed; None where those are skipped.
    """

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        open_writer: Callable[[TextIO], Writer] | None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        retry_failed: bool = False,
    ) -> None:
        """Open the journal; without `overwrite` and `resume` there must be neither FILE nor a journal of it.

        Args:
            path: FILE.
            settings: the run whose rows it will hold.
            open_writer: returns the writer of FILE's format; None for that of the journal, JSON Lines.
            overwrite: whether FILE may be replaced, and a journal discarded.
            resume: whether to go on with the journal, else with the rows of FILE.
            retry_failed: whether failed inputs are to be classified again.

        Raises:
            OutputError: the journal holds another run or something else, is in use, or cannot be written.
        """
        self._path = path
        self._open_writer = open_writer
        self._replace = overwrite or resume
        self.partial = partial_path(path)
        self.journal = Journal(
            self.partial, settings, origin=path if resume else None, overwrite=not resume, retry_failed=retry_failed
        )
        self._rows = JsonLinesWriter(self.journal.rows)
        self.retry_writer = None if self.journal.retries is None else JsonLinesWriter(self.journal.retries)

    def begin(self, run: RunInfo) -> None:
        """Remember the run, which a file of another format names once."""
        self._run = run

    def write(self, result: PictureResult) -> None:
        """Write one row into the journal."""
        self._rows.write(result)

    def end(self, summary: Summary) -> None:
        """Make FILE if the run is complete; else the journal stays.

        Raises:
            OutputError: FILE cannot be written, or was created meanwhile; the journal stays then, too.
        """
        if not summary.complete or not self.journal.merge():
            return
        if not self._replace and has_content(self._path):
            raise OutputError(
                f"{self._path} was created while this run was in progress",
                f"the results are in {self.partial}; resume=True replaces {self._path}",
            )
        if self._open_writer is None:
            self.journal.publish(self._path)
            return
        with atomic_output(self._path) as stream:
            writer = self._open_writer(stream)
            writer.begin(self._run)
            inputs = failed = 0
            for result in self.journal.results():
                writer.write(result)
                inputs += 1
                failed += result.error is not None
            counts = dataclasses.replace(summary, inputs=inputs, ok=inputs - failed, failed=failed, finished_before=0)
            writer.end(counts)
        self.journal.discard(self._path)

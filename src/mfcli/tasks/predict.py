"""Classify pictures and hand every result, in order, to a writer."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfcli.errors import MfError, TooManyFailuresError, UsageError
from mfcli.files import is_url
from mfcli.inference.predictor import Predictor
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.source import Source
from mfcli.outputs.writer import Writer
from mfcli.results import PictureResult, Progress, Tally
from mfcli.runs import RowStatus, RunInfo, Summary, digest_input
from mfcli.signals import ForcedInterrupt, defer_signals
from mfcli.store_urls import is_store_url

if TYPE_CHECKING:
    from mfcli.outputs.journal import Journal


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many failures a run tolerates.

    Attributes:
        count: the run stops when more have failed; None for no such limit.
        percent: the run stops when a larger share of at least `min_inputs` pictures has failed, and fails if that is so
            at its end, however few there are; None for no such limit.
        min_inputs: pictures before a share is meaningful.
    """

    count: int | None = None
    percent: float | None = None
    min_inputs: int = 100

    @classmethod
    def parse(cls, text: str | None) -> "MaxFailures":
        """Read `N` or `P%`; None for no limit.

        Raises:
            UsageError: it is neither.
        """
        if text is None:
            return cls()
        try:
            if text.endswith("%"):
                percent = float(text[:-1])
                if 0 <= percent <= 100:
                    return cls(percent=percent)
            elif (count := int(text)) >= 0:
                return cls(count=count)
        except ValueError:
            pass
        raise UsageError(f"max_failures={text!r} is neither a number nor a percentage", "max_failures=5%")

    def __str__(self) -> str:
        limit = self.count if self.percent is None else f"{self.percent:g}%"
        return f"max_failures={limit}"

    def are_exceeded(self, failed: int, inputs: int, *, at_end: bool = False) -> bool:
        """Return whether `failed` of `inputs` pictures are too many."""
        if self.count is not None:
            return failed > self.count
        is_meaningful = at_end or inputs >= self.min_inputs
        return self.percent is not None and is_meaningful and 100 * failed > self.percent * inputs


ANY_FAILURES = MaxFailures()


def predict(
    predictor: Predictor,
    sources: Iterable[Source],
    writer: Writer,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    max_failures: MaxFailures = ANY_FAILURES,
    journal: "Journal | None" = None,
    retry_writer: Writer | None = None,
    left_out: LeftOut | None = None,
    progress: Progress = lambda _: None,
) -> Summary:
    """Write a row for every source, in order, and return the counts.

    After an interrupt or a failing engine, what was written is completed in its format before the exception goes on.

    Args:
        predictor: classifies.
        sources: the pictures.
        writer: gets the results.
        batch_size: pictures per batch, None for what suits the engine.
        workers: pictures that are decoded at once, None for what suits the machine, 0 for one after the other.
        max_failures: when to stop early.
        journal: knows which sources are finished; they are skipped, and counted in the summary.
        retry_writer: gets the results of sources that had failed; None to skip those as well.
        left_out: what the sources leave out, for the summary.
        progress: told the counts after each result, and at the end if memory was too short for the batches.

    Raises:
        EngineError: the engine fails.
        TooManyFailuresError: the failures exceed `max_failures`; at the end, the output is complete nevertheless.
        OSError: the writer's stream fails.
    """
    run = _RunState(predictor.run_info, writer, journal, retry_writer, left_out or LeftOut())
    try:
        for result in predictor.stream(run.select_unfinished(sources), batch_size=batch_size, workers=workers):
            with defer_signals():
                run.write(result)
            progress(Tally(run.inputs, run.failed, run.finished_before))
            if max_failures.are_exceeded(run.failed, run.inputs):
                raise _too_many(run, max_failures, "stopped: ")
    except ForcedInterrupt:
        raise
    except (KeyboardInterrupt, MfError):
        run.end_early()
        raise
    if note := predictor.memory_note:
        progress(note)
    summary = run.finish()
    if max_failures.are_exceeded(run.failed, run.inputs, at_end=True):
        raise _too_many(run, max_failures)
    return summary


def _too_many(run: "_RunState", max_failures: MaxFailures, prefix: str = "") -> TooManyFailuresError:
    return TooManyFailuresError(
        f"{prefix}{run.failed} of {run.inputs} pictures failed, which exceeds {max_failures}",
        "see the error of each failed row",
    )


class _RunState:
    """One run under way: which sources wait for their results, where each result goes, and the counts.

    Attributes:
        inputs: results written.
        failed: those of them that failed.
        finished_before: sources that an earlier run had finished.
    """

    def __init__(
        self,
        info: RunInfo,
        writer: Writer,
        journal: "Journal | None",
        retry_writer: Writer | None,
        left_out: LeftOut,
    ) -> None:
        self.inputs = 0
        self.failed = 0
        self.finished_before = 0
        self._failed_before = 0
        self._info = info
        self._writer = writer
        self._journal = journal
        self._retry_writer = retry_writer
        self._left_out = left_out
        self._waiting: deque[tuple[Source, Writer]] = deque()  # in order
        self._containers: set[int] = set()

    def select_unfinished(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Yield the sources that have no final row yet, and remember in this order where their results go.

        With workers it runs in the pipeline's feeder thread, ahead of `write`; results come in the same order.
        """
        for source in sources:
            status = self._status_of(source)
            if status is RowStatus.NEW:
                self._waiting.append((source, self._writer))
            elif status is RowStatus.FAILED and self._retry_writer is not None:
                self._waiting.append((source, self._retry_writer))
            else:
                if status is RowStatus.OK:
                    self._note_containers(source)
                self.finished_before += 1
                self._failed_before += status is RowStatus.FAILED
                continue
            yield source

    def _status_of(self, source: Source) -> RowStatus:
        if self._journal is None or source.is_stdin:
            return RowStatus.NEW
        return self._journal.take_status(source.raw, source.member)

    def write(self, result: PictureResult) -> None:
        """Write the next result, in the order of the sources."""
        if not self.inputs:
            self._begin()
        source, writer = self._waiting.popleft()
        writer.write(result)
        if result.error is None:
            self._note_containers(source)
        self.inputs += 1
        self.failed += result.error is not None

    def end_early(self) -> None:
        """Complete what was written; where nothing was, nothing is replaced."""
        if self.inputs:
            with defer_signals():
                self._writer.end(self._summarize(complete=False))

    def finish(self) -> Summary:
        """Complete the output after the last source."""
        if not self.inputs:
            self._begin()
        if self._journal is not None:
            # not after an early end: the container may still fail again
            self._journal.drop_failed(self._containers)
        summary = self._summarize(complete=True)
        self._writer.end(summary)
        return summary

    def _begin(self) -> None:
        if self._journal is not None:
            self._journal.begin()
        for writer in (self._writer, self._retry_writer):
            if writer is not None:
                writer.begin(self._info)

    def _summarize(self, *, complete: bool) -> Summary:
        inputs, failed = self.inputs + self.finished_before, self.failed + self._failed_before
        return Summary(inputs, inputs - failed, failed, complete, self._left_out.counts, self.finished_before)

    def _note_containers(self, source: Source) -> None:
        """Note where a classified picture was found: an earlier failed row of such a container is obsolete.

        Its containers are the folders above it, and the archive or glob that was searched for it.
        """
        if self._retry_writer is None or (is_url(source.argument) and not is_store_url(source.argument)):
            return
        name, found = source.raw, self._containers
        if source.whole is not None:
            whole, member = source.whole
            found.add(digest_input(os.fsencode(whole), member))
            if source.member:
                found.add(digest_input(name, None))
        while folder := name.rpartition(b"/")[0]:
            digest = digest_input(folder, None)
            if digest in found:
                return
            found |= {digest, digest_input(folder + b"/", None)}
            name = folder

"""Classify pictures and hand every result, in order, to a writer."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mfcli.errors import MfError, TooManyFailuresError, UsageError
from mfcli.files import is_url
from mfcli.inference.predictor import Predictor
from mfcli.inputs.sources import Source
from mfcli.outputs.journal import Journal, RowStatus, digest_of
from mfcli.outputs.writer import Writer
from mfcli.results import Progress, Summary, Tally
from mfcli.signals import ForcedInterrupt, defer_signals


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many failures a run bears.

    Attributes:
        count: the run stops when more have failed; None for no such limit.
        percent: the run stops when a larger share of at least `settled` pictures has failed; None for no such limit.
        settled: pictures before a share says something.
    """

    count: int | None = None
    percent: float | None = None
    settled: int = 100

    @classmethod
    def parse(cls, text: str) -> "MaxFailures":
        """Read `N` or `P%`.

        Raises:
            UsageError: it is neither.
        """
        try:
            if text.endswith("%"):
                percent = float(text[:-1])
                if 0 <= percent <= 100:
                    return cls(percent=percent)
            elif (count := int(text)) >= 0:
                return cls(count=count)
        except ValueError:
            pass
        raise UsageError(f"--max-failures {text!r} is neither a number nor a percentage", "--max-failures 5%")

    def are_passed(self, failed: int, inputs: int) -> bool:
        """Whether so many failures are too many."""
        if self.count is not None:
            return failed > self.count
        return self.percent is not None and inputs >= self.settled and 100 * failed > self.percent * inputs


ANY_FAILURES = MaxFailures()


@dataclass(slots=True)
class _Counts:
    inputs: int = 0
    failed: int = 0
    finished_before: int = 0
    failed_before: int = 0

    @property
    def summary(self) -> Summary:
        inputs, failed = self.inputs + self.finished_before, self.failed + self.failed_before
        return Summary(inputs, inputs - failed, failed)


def _add_holders(source: Source, holders: set[int]) -> None:
    """Add what holds a picture: the folders above it, and what it was found by, an archive or a glob."""
    if is_url(source.argument):
        return
    name = source.raw
    if source.whole is not None:
        whole, member = source.whole
        holders |= {digest_of(os.fsencode(whole), member), *([digest_of(name, None)] if source.member else [])}
    while folder := name.rpartition(b"/")[0]:
        digest = digest_of(folder, None)
        if digest in holders:
            return
        holders |= {digest, digest_of(folder + b"/", None)}
        name = folder


def predict(
    predictor: Predictor,
    sources: Iterable[Source],
    writer: Writer,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    max_failures: MaxFailures = ANY_FAILURES,
    journal: Journal | None = None,
    retry_writer: Writer | None = None,
    progress: Progress = lambda _: None,
) -> Summary:
    """Write a row for every source, in order, and return the counts.

    An interrupt, or an engine that fails, leaves what was written complete in its format, then goes on to the caller.

    Args:
        predictor: classifies.
        sources: the pictures.
        writer: gets the results.
        batch_size: pictures computed as one, None for what suits the engine.
        workers: threads that decode, None for what suits the machine, 0 for none.
        max_failures: when to stop early.
        journal: says which sources are finished already; they are skipped, and counted in the summary.
        retry_writer: gets the results of sources that had failed; None to skip those as well.
        progress: told the counts after each result.

    Raises:
        EngineError: the engine fails.
        TooManyFailuresError: more failed than `max_failures` bears.
        OSError: the writer's stream fails.
    """
    counts = _Counts()
    under_way: deque[tuple[Source, Writer]] = deque()  # in order
    holders: set[int] = set()

    def unfinished() -> Iterator[Source]:
        for source in sources:
            state = journal.state_of(source.raw, source.member) if journal and not source.is_stdin else RowStatus.NEW
            if state is RowStatus.NEW:
                under_way.append((source, writer))
            elif state is RowStatus.FAILED and retry_writer is not None:
                under_way.append((source, retry_writer))
            else:
                if state is RowStatus.OK and retry_writer is not None:
                    _add_holders(source, holders)
                counts.finished_before += 1
                counts.failed_before += state is RowStatus.FAILED
                continue
            yield source

    def begin() -> None:
        if journal is not None:
            journal.begin()
        for each in (writer, retry_writer):
            if each is not None:
                each.begin(predictor.run)

    try:
        for result in predictor.predict(unfinished(), batch_size=batch_size, workers=workers):
            with defer_signals():
                if not counts.inputs:
                    begin()
                source, its_writer = under_way.popleft()
                its_writer.write(result)
                if retry_writer is not None and result.error is None:
                    _add_holders(source, holders)
                counts.inputs += 1
                counts.failed += result.error is not None
            progress(Tally(counts.inputs, counts.failed, counts.finished_before))
            if max_failures.are_passed(counts.failed, counts.inputs):
                raise TooManyFailuresError(
                    f"stopped: {counts.failed} of {counts.inputs} pictures failed, more than --max-failures bears",
                    "the rows say why",
                )
    except ForcedInterrupt:
        raise
    except (KeyboardInterrupt, MfError):
        if counts.inputs:  # else nothing was begun, and nothing is replaced
            with defer_signals():
                writer.end(counts.summary)
        raise
    if not counts.inputs:
        begin()
    if journal is not None:
        journal.drop_failed(holders)  # not where the run ended early: an archive may still prove damaged
    writer.end(counts.summary)
    return counts.summary

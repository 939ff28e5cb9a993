"""Progress callbacks for a person: notes as lines on stderr; downloads and long runs as bars where it is a terminal."""

import sys
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mfcli.cli.flags import name_flags
from mfcli.errors import escape_control_characters
from mfcli.results import Tally, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID


class StderrProgress:
    """Draws what it is told; used in a `with`, so that a bar is gone when something else is written.

    Args:
        note: writes one line.
        quiet: whether to draw and write nothing.
        rows_elsewhere: whether results go somewhere else than this terminal, so that a bar can tell how far they are.

    Attributes:
        total: how many pictures there are, once that is known.
    """

    def __init__(self, note: "Callable[[str], None]", quiet: bool = False, rows_elsewhere: bool = False) -> None:
        self._note = note
        self._quiet = quiet
        self._rows_elsewhere = rows_elsewhere
        self.total: int | None = None
        self._run: _RunBar | None = None
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a terminal that has gone away, here and below: the run goes on without it
            if self._bars is not None:
                self._bars.stop()
            if self._run is not None:
                self._run.stop()

    @property
    def draws_runs(self) -> bool:
        """Whether a bar for a run is wanted and possible."""
        return not self._quiet and self._rows_elsewhere and sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, event: str | Transfer | Tally) -> None:
        """Draw a transfer or a run, or write a note."""
        if not self._quiet:
            with suppress(OSError):
                self._show(event)

    def _show(self, event: str | Transfer | Tally) -> None:
        if isinstance(event, Tally):
            if self.draws_runs:
                self._run = self._run or _RunBar()
                self._run.draw(event, self.total)
        elif isinstance(event, str):
            if self._run is not None:
                self._run.note(event)
            elif self._bars is not None:
                _note_above(self._bars, event)
            else:
                self._note(event)
        elif sys.stderr is not None and sys.stderr.isatty():
            self._draw(event)
        elif event.name not in self._announced:
            self._announced.add(event.name)
            size = "" if event.total_bytes is None else f" ({event.total_bytes / 1e6:.1f} MB)"
            self._note(f"downloading {event.name}{size}")

    def _draw(self, event: Transfer) -> None:
        if self._bars is None:
            from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = _bars(*columns, TimeRemainingColumn())
            self._bars.start()
        if event.name not in self._tasks:
            self._tasks[event.name] = self._bars.add_task(event.name, total=event.total_bytes)
        self._bars.update(self._tasks[event.name], completed=event.done_bytes, total=event.total_bytes)
        if event.done_bytes == event.total_bytes:
            self._bars.remove_task(self._tasks.pop(event.name))


def _bars(*columns: "str | ProgressColumn") -> "Bars":
    """Bars on stderr that are gone when they stop; what is written to stdout meanwhile stays there."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)


def _note_above(bars: "Bars", message: str) -> None:
    bars.console.print(
        f"note: {escape_control_characters(name_flags(message))}", markup=False, highlight=False, soft_wrap=True
    )


class _RunBar:
    """A bar of a run: done, rate, time left, failures."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self._bars = _bars(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]}"),
        )
        self._task = self._bars.add_task("", total=None, rate="", failed="")
        self._bars.start()

    def draw(self, tally: Tally, total: int | None) -> None:
        speed = self._bars.tasks[0].speed
        self._bars.update(
            self._task,
            completed=tally.done,
            total=None if total is None else max(total - tally.finished_before, tally.done),
            rate=f"{speed:.1f} pictures/s" if speed else "",
            failed=f"{tally.failed} failed" if tally.failed else "",
        )

    def note(self, message: str) -> None:
        _note_above(self._bars, message)

    def stop(self) -> None:
        self._bars.stop()

"""Progress on stderr: notes as lines, and on a terminal bars for downloads and long runs."""

import sys
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mfcli.cli.flags import name_flags
from mfcli.cli.streams import is_terminal, mute_libraries
from mfcli.errors import escape_control_characters
from mfcli.memory import is_memory_limited
from mfcli.results import Step, Tally, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

_STEPS = ""
"""What the only bar of steps is called among the bars of downloads, which have names."""


class StderrProgress:
    """A progress callback and context manager, which removes its bars at the end.

    Args:
        note: writes one line.
        quiet: whether to draw and write nothing; then C libraries, such as libtiff, write nothing either.
        with_bar: whether to show a run as a bar; rows that are written to the same terminal would disturb it.

    Attributes:
        total: number of pictures, once it is known.
    """

    def __init__(self, note: "Callable[[str], None]", quiet: bool = False, with_bar: bool = False) -> None:
        self._note = note
        self._quiet = quiet
        self._with_bar = with_bar
        self.total: int | None = None
        self._run: _RunBar | None = None
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()
        self._muted = ExitStack()

    def __enter__(self) -> Self:
        if self._quiet and not is_memory_limited():  # a C library that runs out of memory says so on stderr
            self._muted.enter_context(mute_libraries())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._muted.close()
        with suppress(OSError):  # the terminal was closed; here and below, the run goes on without it
            self._stop_bars()
            if self._run is not None:
                self._run.stop()

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    @property
    def draws_runs(self) -> bool:
        """Whether the progress of a run is shown as a bar."""
        return not self._quiet and self._with_bar and is_terminal(sys.stderr)

    def __call__(self, event: str | Transfer | Tally | Step) -> None:
        """Show a note, or the progress of a download, a run or a task."""
        if not self._quiet:
            with suppress(OSError):
                self._show(event)

    def _show(self, event: str | Transfer | Tally | Step) -> None:
        if isinstance(event, Tally):
            if self.draws_runs:
                self._stop_bars()
                self._run = self._run or _RunBar()
                self._run.draw(event, self.total if event.total is None else event.total)
        elif isinstance(event, str):
            if self._run is not None:
                self._run.note(event)
            elif self._bars is not None:
                _print_note(self._bars, event)
            else:
                self._note(event)
        elif isinstance(event, Step):
            if is_terminal(sys.stderr):
                if self._run is not None:
                    self._run.stop()
                    self._run = None
                self._draw_step(event)
        elif is_terminal(sys.stderr):
            self._draw_transfer(event)
        elif event.name not in self._announced:
            self._announced.add(event.name)
            size = "" if event.total_bytes is None else f" ({event.total_bytes / 1e6:.1f} MB)"
            self._note(f"downloading {event.name}{size}")

    def _draw_transfer(self, event: Transfer) -> None:
        if self._bars is None or _STEPS in self._tasks:
            from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

            self._stop_bars()
            columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = _make_bars(*columns, TimeRemainingColumn())
            self._bars.start()
        if event.name not in self._tasks:
            self._tasks[event.name] = self._bars.add_task(event.name, total=event.total_bytes)
        self._bars.update(self._tasks[event.name], completed=event.done_bytes, total=event.total_bytes)
        if event.done_bytes == event.total_bytes:
            self._bars.remove_task(self._tasks.pop(event.name))

    def _draw_step(self, event: Step) -> None:
        if self._bars is None or _STEPS not in self._tasks:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.table import Column

            self._stop_bars()
            # what is done may be long: it is cut in a narrow terminal
            description = TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            )
            self._bars = _make_bars(BarColumn(bar_width=20), TimeRemainingColumn(), description)
            self._bars.expand = True
            self._bars.start()
            self._tasks[_STEPS] = self._bars.add_task("", total=event.total)
        self._bars.update(self._tasks[_STEPS], completed=event.done, description=event.description, refresh=True)


def _make_bars(*columns: "str | ProgressColumn") -> "Bars":
    """Return bars on stderr that disappear when stopped and leave stdout alone."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)


def _print_note(bars: "Bars", message: str) -> None:
    """Print a note above the bars."""
    note = f"note: {escape_control_characters(name_flags(message))}"
    bars.console.print(note, markup=False, highlight=False, soft_wrap=True)


class _RunBar:
    """The bar of a run: pictures done, rate, time left, failures."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self._bars = _make_bars(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[failed]}"),
        )
        self._task = self._bars.add_task("", total=None, rate="", failed="")

    def draw(self, tally: Tally, total: int | None) -> None:
        speed = self._bars.tasks[0].speed
        self._bars.update(
            self._task,
            completed=tally.done,
            total=None if total is None else max(total - tally.finished_before, tally.done),
            rate=f"{speed:.1f} pictures/s" if speed else "",
            failed=f"{tally.failed} failed" if tally.failed else "",
        )
        self._bars.start()  # with a total, if there is one

    def note(self, message: str) -> None:
        _print_note(self._bars, message)

    def stop(self) -> None:
        self._bars.stop()

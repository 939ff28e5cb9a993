"""Progress callbacks for a person: notes as lines on stderr, downloads as a bar where stderr is a terminal."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mfcli.results import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class StderrProgress:
    """Draws what it is told; used in a `with`, so that a bar is gone when something else is written.

    Args:
        note: writes one line.
        quiet: whether to draw and write nothing.
    """

    def __init__(self, note: "Callable[[str], None]", quiet: bool = False) -> None:
        self._note = note
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: str | Transfer) -> None:
        """Draw a transfer, or write a note."""
        if self._quiet:
            return
        if isinstance(event, str):
            if self._bars is not None:
                self._bars.console.print(f"note: {event}", markup=False, highlight=False, soft_wrap=True)
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
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        if event.name not in self._tasks:
            self._tasks[event.name] = self._bars.add_task(event.name, total=event.total_bytes)
        self._bars.update(self._tasks[event.name], completed=event.done_bytes, total=event.total_bytes)
        if event.done_bytes == event.total_bytes:
            self._bars.remove_task(self._tasks.pop(event.name))

"""Tables for people, drawn with rich: fitted to the width of a terminal, never cut in a pipe."""

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from mfcli.errors import escape_control_characters
from mfcli.results import PictureResult, RunInfo, Summary

_PIPE_WIDTH = 100_000  # wider than any row, so that nothing is folded
_MIN_WIDTH = 20
_DEFAULT_WIDTH = 80
_BAR_CELLS = 20
_MIN_WIDTH_WITH_BAR = 64
_EIGHTHS = " ▏▎▍▌▋▊▉"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Re-raise the error; rich would end the program."""
        raise


def _make_console(stream: TextIO, *, fold: bool) -> Console:
    """Return a console as wide as the terminal if rows are folded in one, else wider than any row."""
    width = None if fold and stream.isatty() else _PIPE_WIDTH
    console = _Console(file=stream, width=width, highlight=False, emoji=False)
    if console.width < 1:  # COLUMNS=0, which some terminals set
        console.width = _DEFAULT_WIDTH
    console.width = max(console.width, _MIN_WIDTH)  # below it, rich drops columns
    return console


class TableWriter:
    """One small table per picture: rank, label, probability, and a bar if the terminal is wide enough."""

    def __init__(self, stream: TextIO) -> None:
        self._console = _make_console(stream, fold=True)

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write the picture's name with its table or its error."""
        name = Text(escape_control_characters(result.shown_name), style="bold", overflow="fold")
        if result.error:
            self._console.print(name + Text(f": {escape_control_characters(result.error.message)}", style="red"))
        else:
            size = Text(f"  {result.width}x{result.height}", style="dim")
            self._console.print(name + size)
            self._console.print(self._make_table(result))

    def _make_table(self, result: PictureResult) -> Table:
        table = Table(box=ROUNDED)
        table.add_column("#", justify="right")
        table.add_column("label", overflow="fold")
        table.add_column("prob", justify="right", no_wrap=True)
        with_bar = self._console.width >= _MIN_WIDTH_WITH_BAR
        if with_bar:
            table.add_column("", no_wrap=True, width=_BAR_CELLS)
        for p in result.predictions:
            row = [Text(str(p.rank)), Text(escape_control_characters(p.label)), Text(f"{p.prob:.1%}")]
            table.add_row(*row, *([Text(_draw_bar(p.prob), style="cyan")] if with_bar else []))
        return table

    def end(self, summary: Summary) -> None:
        """Write the counts if there were several pictures."""
        if summary.inputs > 1:
            self._console.print(Text(summary.in_words(), style="dim"))


class LineWriter:
    """One line per picture, for many pictures: its name and predictions, cut at the terminal's edge.

    A name that leaves no room for the first prediction is cut at its start, which the names in a folder share.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = _make_console(stream, fold=True)

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write one line, flushed."""
        parts = [Text(f"  {escape_control_characters(result.error.message)}", "red")] if result.error else []
        for p in result.predictions:
            label, prob = f"  {escape_control_characters(p.label)}", f" {p.prob:.1%}"
            parts.append(Text(label, "" if p.rank == 1 else "dim") + Text(prob, "cyan" if p.rank == 1 else "dim"))
        name = Text(escape_control_characters(result.shown_name), "bold")
        if self._console.is_terminal:
            room = self._console.width - sum(part.cell_len for part in parts[:1]) - len(parts[1:2])  # 1 for an ellipsis
            line = Text.assemble(_truncate_start(name, max(room, self._console.width // 2)), *parts)
            self._console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            self._console.file.write(f"{Text.assemble(name, *parts).plain}\n")
        self._console.file.flush()

    def end(self, summary: Summary) -> None:
        """Write the counts."""
        self._console.print(Text(summary.in_words(), style="dim"))


def _truncate_start(name: Text, width: int) -> Text:
    if name.cell_len <= width:
        return name
    kept = name.plain[-width:]
    while cell_len(kept) > width - 1:
        kept = kept[1:]
    return Text(f"…{kept}", name.style)


def _draw_bar(prob: float) -> str:
    eighths = round(prob * _BAR_CELLS * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def write_table(stream: TextIO, records: Sequence[Mapping[str, str]]) -> None:
    """Write records with the same keys as one table; columns of numbers are right-aligned.

    Rows are never folded and have no trailing spaces, so that names and paths can be copied from a narrow terminal.
    """
    if not records:
        return
    table = Table(box=None, header_style="bold")
    for column in records[0]:
        cells = [record[column] for record in records]
        table.add_column(column, justify="right" if all(map(_is_number, cells)) else "left", overflow="fold")
    for record in records:
        table.add_row(*(Text(escape_control_characters(cell)) for cell in record.values()))
    console = _make_console(stream, fold=False)
    for line in console.render_lines(table, pad=False):
        console.print(Segments([*_strip_padding(line), Segment.line()]))


def _strip_padding(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).isdigit()

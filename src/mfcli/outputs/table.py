"""Tables for people, drawn with rich: fitted to the width of a terminal, never cut in a pipe."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from mfcli.errors import escape_control_characters
from mfcli.outputs.writer import LabelType
from mfcli.results import Abstention, PictureResult, Prediction
from mfcli.runs import RunInfo, Summary

if TYPE_CHECKING:
    from mfcli.outputs.pictures import PictureRenderer

_PIPE_WIDTH = 100_000  # wider than any row, so that nothing is folded
_MIN_WIDTH = 20
_DEFAULT_WIDTH = 80
_BAR_CELLS = 20
_CELLS_BESIDE_LABEL = 22  # rank, probability, padding and borders
_MIN_CELLS_BESIDE_PICTURE = 34
_PADDING = 2  # cells beside each column of a table that has room
_FOLDED_CELLS = 20  # the narrowest column that long cells are folded in
_HEADERS = {LabelType.NAME: "label", LabelType.WNID: "wnid", LabelType.INDEX: "index"}
_EIGHTHS = " ▏▎▍▌▋▊▉"


_ABSTENTIONS = {
    Abstention.UNSURE: "unsure: too many answers of this probability are wrong",
    Abstention.UNFAMILIAR: "unfamiliar: unlike the pictures that the model learned from",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Re-raise the error; rich would end the program."""
        raise


def _make_console(stream: TextIO) -> Console:
    """Return a console as wide as the terminal, without one wider than any row."""
    width = None if stream.isatty() else _PIPE_WIDTH
    console = _Console(file=stream, width=width, highlight=False, emoji=False)
    if console.width < 1:  # COLUMNS=0, which some terminals set
        console.width = _DEFAULT_WIDTH
    console.width = max(console.width, _MIN_WIDTH)  # below it, rich drops columns
    return console


class TableWriter:
    """One small table per picture: rank, label, probability, and a bar and the picture where there is room for them."""

    def __init__(
        self, stream: TextIO, label_type: LabelType = LabelType.NAME, renderer: "PictureRenderer | None" = None
    ) -> None:
        self._console = _make_console(stream)
        self._label_type = label_type
        self._renderer = renderer

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write the picture's name with its table or its error."""
        name = Text(escape_control_characters(result.shown_name), style="bold", overflow="fold")
        if result.error:
            self._console.print(name + Text(f": {escape_control_characters(result.error.message)}", style="red"))
        else:
            size = Text(f"  {result.width}x{result.height}", style="dim")
            if self._renderer and result.thumbnail:
                self._console.print(self._place_beside(self._renderer(result.thumbnail), result, name + size))
            else:
                self._console.print(name + size)
                if result.predictions:  # features have none
                    self._console.print(self._make_body(result, self._console.width))

    def _place_beside(self, picture: RenderableType, result: PictureResult, title: Text) -> RenderableType:
        """Return the picture beside its table, above it in a narrow terminal."""
        room = self._console.width - self._console.measure(picture).maximum - _PADDING
        if room < _MIN_CELLS_BESIDE_PICTURE:
            return Group(picture, title, self._make_body(result, self._console.width))
        grid = Table.grid(padding=(0, _PADDING))
        grid.add_row(picture, Group(title, self._make_body(result, room)))
        return grid

    def _make_body(self, result: PictureResult, room: int) -> RenderableType:
        """Return the table of classes, below the concept where that is not the first class."""
        table: RenderableType = self._make_table(result, room)
        concept = result.concept
        if result.abstained:
            table = Group(Text(_ABSTENTIONS[result.abstained], style="yellow", overflow="fold"), table)
        if concept is None or (result.top and result.top.wnid == concept.wnid):
            return table
        label = concept.wnid if self._label_type is LabelType.WNID else escape_control_characters(concept.label)
        return Group(Text(f"{label} {concept.prob:.1%}", overflow="fold"), table)

    def _make_table(self, result: PictureResult, room: int) -> Table:
        table = Table(box=ROUNDED)
        table.add_column("#", justify="right")
        table.add_column(_HEADERS[self._label_type], overflow="fold")
        table.add_column("prob", justify="right", no_wrap=True)
        labels = [_format_label(p, self._label_type) for p in result.predictions]
        with_bar = room >= max(map(cell_len, labels)) + _CELLS_BESIDE_LABEL + _BAR_CELLS
        if with_bar:
            table.add_column("", no_wrap=True, width=_BAR_CELLS)
        for p, label in zip(result.predictions, labels, strict=True):
            row = [Text(str(p.rank)), Text(label), Text(f"{p.prob:.1%}")]
            table.add_row(*row, *([Text(_draw_bar(p.prob), style="cyan")] if with_bar else []))
        return table

    def end(self, summary: Summary) -> None:
        """Write the counts if there were several pictures."""
        if summary.inputs > 1:
            self._console.print(Text(summary.in_words(), style="dim"))


class LineWriter:
    """One line per picture, for many pictures: its name and as many predictions as the terminal's width has room for.

    The first prediction's probability is always whole, and so is an error, which may take several lines of the
    terminal. Too long a name is cut at its start, which the names in a folder share, to half of the width; then too
    long a label is cut at its end.
    """

    def __init__(self, stream: TextIO, label_type: LabelType = LabelType.NAME) -> None:
        self._console = _make_console(stream)
        self._label_type = label_type

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write one line, flushed."""
        name = Text(escape_control_characters(result.shown_name), "bold")
        if result.error:
            parts = [(Text(""), Text(f"  {escape_control_characters(result.error.message)}", "red"))]
        else:
            parts = [self._format_prediction(p) for p in result.predictions] or [(Text(""), Text(""))]
            if result.abstained:
                label, prob = parts[0]
                parts[0] = (label, prob + Text(f" {result.abstained}", "yellow"))
        if self._console.is_terminal:
            self._console.print(_fit_line(name, parts, self._console.width), soft_wrap=True)
        else:
            self._console.file.write(f"{Text.assemble(name, *itertools.chain(*parts)).plain}\n")
        self._console.file.flush()

    def _format_prediction(self, p: Prediction) -> tuple[Text, Text]:
        label, prob = f"  {_format_label(p, self._label_type)}", f" {p.prob:.1%}"
        return Text(label, "" if p.rank == 1 else "dim"), Text(prob, "cyan" if p.rank == 1 else "dim")

    def end(self, summary: Summary) -> None:
        """Write the counts."""
        self._console.print(Text(summary.in_words(), style="dim"))


def _fit_line(name: Text, parts: Sequence[tuple[Text, Text]], width: int) -> Text:
    """Return a line of at most `width` cells, if the first probability fits.

    Of `parts`, texts and probabilities, the first text may be cut.
    """
    (label, prob), *others = parts
    name = _truncate_start(name, max(width - label.cell_len - prob.cell_len, width // 2))
    label.truncate(max(width - name.cell_len - prob.cell_len, 0), overflow="ellipsis")
    line = Text.assemble(name, label, prob)
    for part in itertools.starmap(Text.__add__, others):
        if line.cell_len + part.cell_len > width:
            break
        line += part
    return line


def _truncate_start(name: Text, width: int) -> Text:
    if name.cell_len <= width:
        return name
    kept = name.plain[-width:]
    while cell_len(kept) > width - 1:
        kept = kept[1:]
    return Text(f"…{kept}", name.style)


def _format_label(p: Prediction, label_type: LabelType) -> str:
    """Return what a table shows of a class; WordNet's names are lists of synonyms, the first of which is shown."""
    match label_type:
        case LabelType.INDEX:
            return str(p.class_index)
        case LabelType.WNID if p.wnid:
            return p.wnid
    return escape_control_characters(p.label.partition(",")[0] if p.wnid else p.label)


def _draw_bar(prob: float) -> str:
    eighths = round(prob * _BAR_CELLS * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def write_table(stream: TextIO, records: Sequence[Mapping[str, str]], optional: Sequence[str] = ()) -> None:
    """Write records with the same keys as one table; columns of numbers are right-aligned.

    In a terminal that is too narrow, long cells such as paths are folded; if that is not enough, optional columns are
    left out, or each record becomes a list of its cells. Everything else stays whole, and rows have no trailing spaces.

    Args:
        stream: a text stream.
        records: cells by column.
        optional: columns that a narrow terminal does without, the most dispensable first.
    """
    if not records:
        return
    console = _make_console(stream)
    columns = list(records[0])
    left_out = [column for column in optional if column in columns]
    while (table := _lay_out(records, columns, console.width)) is None and left_out:
        columns.remove(left_out.pop(0))
    for i, shown in enumerate([table] if table else (_lay_out_list(record) for record in records)):
        if i:
            console.line()
        for line in console.render_lines(shown, pad=False):
            console.print(Segments([*_strip_padding(line), Segment.line()]))


def _lay_out(records: Sequence[Mapping[str, str]], columns: Sequence[str], width: int) -> Table | None:
    """Return the table of some columns; None if it is wider than `width`."""
    cells = {column: [escape_control_characters(record[column]) for record in records] for column in columns}
    natural = {column: max(map(cell_len, [column, *cells[column]])) for column in columns}
    is_roomy = sum(natural.values()) + _PADDING * len(columns) <= width
    padding = (0, 1) if is_roomy else (0, 1, 0, 0)
    table = Table(box=None, header_style="bold", pad_edge=is_roomy, padding=padding)
    needed = len(columns)  # with the padding
    for column in columns:
        header, least = column, natural[column]
        if not is_roomy:
            header = column.replace("_", " ")
            least = max(map(cell_len, [*header.split(), *cells[column]]))
        if is_folded := not is_roomy and least > _FOLDED_CELLS and column != columns[0]:
            least = _FOLDED_CELLS
        needed += least
        justify: JustifyMethod = "right" if all(map(_is_number, cells[column])) else "left"
        table.add_column(
            header, justify=justify, overflow="fold", min_width=least, max_width=None if is_folded else least
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    return table if is_roomy or needed <= width else None


def _lay_out_list(record: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for column, cell in record.items():
        if cell:
            table.add_row(column, Text(escape_control_characters(cell)))
    return table


def _strip_padding(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(".", "", 1).isdigit()

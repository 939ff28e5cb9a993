"""Pictures in a terminal, drawn by textual-image: as sixels, with kitty's graphics, or else in half blocks.

Imported for `mf predict --show` alone.
"""

import logging
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from PIL import Image
from rich.console import Console, RenderableType

from mfcli.errors import UsageError

PictureRenderer = Callable[[Image.Image], RenderableType]
"""Returns what draws a picture, at most 24 cells wide and 12 high."""

_COLUMNS, _ROWS = 24, 12  # a cell is about twice as high as wide


def load_renderer(stream: TextIO) -> PictureRenderer:
    """Ask the terminal which graphics it has, and return what draws with them.

    Raises:
        UsageError: the stream is no terminal with colours, or textual-image is not installed.
    """
    console = Console(file=stream)
    if not console.is_terminal or console.no_color or console.color_system is None:
        raise UsageError("pictures are shown only in a terminal with colours")
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # a terminal that does not answer is a warning
    try:
        with _read_answers_from_terminal(stream):
            from textual_image.renderable import Image as TerminalImage  # asks for the graphics

            console.measure(TerminalImage(Image.new("RGB", (1, 1))))  # asks for the size of a cell
    except ImportError as error:
        raise UsageError("pictures are shown by textual-image: pip install textual-image") from error
    except (OSError, termios.error, ZeroDivisionError) as error:  # the last: a terminal of 0 columns
        raise UsageError(f"pictures are not shown: the terminal cannot be asked for its size ({error})") from error

    def render(picture: Image.Image) -> RenderableType:
        scale = min(_COLUMNS / picture.width, 2 * _ROWS / picture.height)
        columns, rows = round(picture.width * scale), round(picture.height * scale / 2)
        drawn: RenderableType = TerminalImage(picture, width=max(columns, 1), height=max(rows, 1))
        return drawn

    return render


@contextmanager
def _read_answers_from_terminal(stream: TextIO) -> Iterator[None]:
    """Have textual-image read the terminal's answers there, where standard input may be a picture."""
    stdin = sys.__stdin__
    with Path(os.ttyname(stream.fileno())).open(encoding="utf-8") as terminal:
        sys.__stdin__ = terminal  # type: ignore[misc]
        try:
            yield
        finally:
            sys.__stdin__ = stdin  # type: ignore[misc]

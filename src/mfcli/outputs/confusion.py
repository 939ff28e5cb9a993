"""A confusion matrix as CSV, and as a picture that is drawn with Pillow."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from PIL import Image, ImageDraw, ImageFont

_CELL, _MIN_CELL, _MAX_SIDE, _MARGIN = 48, 4, 1600, 12
_MAX_NAME = 24
_MAX_LABELLED = 60
"""Classes up to which names and counts are legible."""
_BLUE, _ORANGE = (31, 90, 160), (214, 96, 20)
_MAX_MATRIX = 1000
"""Classes up to which there is a matrix, else a list of its entries."""
_OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Confusions:
    """Which classes were given for which.

    Attributes:
        correct: the number of right answers by class, of all classes that have pictures.
        pairs: right class, given class and number of pictures, the most frequent first.
    """

    correct: Mapping[str, int]
    pairs: Sequence[tuple[str, str, int]]

    @property
    def is_matrix(self) -> bool:
        """Whether there are so few classes that a matrix is legible."""
        return len(self.correct) <= _MAX_MATRIX

    def write_csv(self, stream: TextIO) -> None:
        """Write a row for each class that has pictures, and a column for each class; of many classes, the pairs."""
        writer = csv.writer(stream, lineterminator="\n")
        if not self.is_matrix:
            writer.writerow(["truth", "predicted", "count"])
            writer.writerows(self.pairs)
            return
        columns = list(dict.fromkeys([*self.correct, *(given for _, given, _ in self.pairs)]))
        writer.writerow(["truth", *columns])
        writer.writerows([name, *counts] for name, counts in zip(self.correct, self._list(columns), strict=True))

    def draw(self) -> Image.Image:
        """Return the matrix as a picture; what was given but has no pictures is one column."""
        others = any(given not in self.correct for _, given, _ in self.pairs)
        columns = [*self.correct, *([_OTHERS] if others else [])]
        return draw_confusions(list(self.correct), columns, self._list(columns))

    def _list(self, columns: Sequence[str]) -> list[list[int]]:
        places = {name: place for place, name in enumerate(columns)}
        matrix = [[0] * len(columns) for _ in self.correct]
        for name, count in self.correct.items():
            matrix[places[name]][places[name]] = count
        for truth, given, count in self.pairs:
            matrix[places[truth]][places.get(given, -1)] += count
        return matrix


def draw_confusions(rows: Sequence[str], columns: Sequence[str], matrix: Sequence[Sequence[int]]) -> Image.Image:
    """Return the matrix as a picture: right classes are rows, given classes columns, shares of a row as colour.

    Right answers are blue, confusions orange.

    Args:
        rows: names of the right classes.
        columns: names of the given classes, which begin with those.
        matrix: counts by right class and given class.
    """
    cell = max(_MIN_CELL, min(_CELL, _MAX_SIDE // len(columns)))
    labelled = len(columns) <= _MAX_LABELLED
    font = ImageFont.load_default(max(8, min(14, cell // 2)))
    shown = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in columns]
    side = int(max(font.getlength(name) for name in shown)) + _MARGIN if labelled else 0
    left = top = side + _MARGIN
    picture = Image.new("RGB", (left + len(columns) * cell + _MARGIN, top + len(rows) * cell + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for row, counts in enumerate(matrix):
        total = sum(counts)
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            colour = _mix(_BLUE if row == column else _ORANGE, share)
            x, y = left + column * cell, top + row * cell
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), colour, "#dddddd" if labelled else None)
            if labelled and count:
                ink = "white" if share > 0.5 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(count), ink, font, "mm")
    if labelled:
        for index, name in enumerate(shown[: len(rows)]):
            draw.text((left - _MARGIN / 2, top + (index + 0.5) * cell), name, "black", font, "rm")
        turned = Image.new("RGB", (side, len(columns) * cell), "white")
        for index, name in enumerate(shown):
            ImageDraw.Draw(turned).text((0, (index + 0.5) * cell), name, "black", font, "lm")
        picture.paste(turned.transpose(Image.Transpose.ROTATE_90), (left, _MARGIN // 2))
    return picture


def _mix(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    return tuple(round(255 + (level - 255) * share) for level in colour)

"""A confusion matrix as a picture, drawn with Pillow."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_CELL, _MIN_CELL, _MAX_SIDE, _MARGIN = 48, 4, 1600, 12
_MAX_NAME = 24
_MAX_LABELLED = 60
"""Classes up to which names and counts are legible."""
_BLUE, _ORANGE = (31, 90, 160), (214, 96, 20)


def draw_confusions(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Image.Image:
    """Return the matrix as a picture: right classes are rows, given classes columns, shares of a row as colour.

    Right answers are blue, confusions orange.

    Args:
        names: of the classes.
        matrix: counts by right class and given class.
    """
    size = len(names)
    cell = max(_MIN_CELL, min(_CELL, _MAX_SIDE // size))
    labelled = size <= _MAX_LABELLED
    font = ImageFont.load_default(max(8, min(14, cell // 2)))
    shown = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in names]
    side = int(max(font.getlength(name) for name in shown)) + _MARGIN if labelled else 0
    left = top = side + _MARGIN
    picture = Image.new("RGB", (left + size * cell + _MARGIN, top + size * cell + _MARGIN), "white")
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
        for index, name in enumerate(shown):
            draw.text((left - _MARGIN / 2, top + (index + 0.5) * cell), name, "black", font, "rm")
        turned = Image.new("RGB", (side, size * cell), "white")
        for index, name in enumerate(shown):
            ImageDraw.Draw(turned).text((0, (index + 0.5) * cell), name, "black", font, "lm")
        picture.paste(turned.transpose(Image.Transpose.ROTATE_90), (left, _MARGIN // 2))
    return picture


def _mix(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    return tuple(round(255 + (level - 255) * share) for level in colour)

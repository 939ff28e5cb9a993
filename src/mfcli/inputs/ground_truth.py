"""The classes of pictures that lie in one folder, from a file: ILSVRC's validation set, Tiny ImageNet's, Kaggle's."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mfcli.errors import UsageError

_EXPECTED = "one WordNet id, name or index from 0 a line, in the order of the pictures' names; or: NAME LABEL"
_ILSVRC = re.compile(r"ILSVRC2012_val_(\d{8})")
_WNID_WITH_BOXES = re.compile(r"(n\d{8}) .*")
_ILSVRC_IDS = range(1, 1001)


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The classes of pictures, by name or by position.

    Attributes:
        path: the file.
        by_name: labels by the names of pictures, with suffix or without; empty if they are in order.
        in_order: labels in the order of the pictures' names; empty if they are by name.
    """

    path: Path
    by_name: Mapping[str, str] = field(default_factory=dict)
    in_order: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path) -> "GroundTruth":
        """Read a file.

        A line is a label, of the next picture in the order of names; or the name of a picture and its label, between
        which is a tab, a comma or a space. What follows the label, such as boxes, is ignored.

        Raises:
            UsageError: it cannot be read, mixes both, or has ILSVRC's own ids, whose order is not that of the classes.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", _EXPECTED) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text", _EXPECTED) from error
        rows = list(map(_split, lines))
        if not rows or len({len(row) == 1 for row in rows}) > 1:
            raise UsageError(f"{path} is empty, or mixes labels with and without names", _EXPECTED)
        labels = {row[-1] for row in rows}
        if labels <= set(map(str, _ILSVRC_IDS)) and str(_ILSVRC_IDS[-1]) in labels:
            raise UsageError(
                f"{path} has ILSVRC's own ids, 1 to 1000, whose order is not that of the classes",
                "its devkit says which WordNet ids they are: give these, one a line",
            )
        if len(rows[0]) == 1:
            return cls(path, in_order=[row[0] for row in rows])
        return cls(path, by_name={row[0]: row[1] for row in rows})

    def label(self, names: Sequence[str]) -> list[str]:
        """Return the labels of pictures.

        Args:
            names: their paths, in natural order if the labels are in order; numbers of ILSVRC's names are used there.

        Raises:
            UsageError: a picture has no label, or there is another number of pictures than of labels.
        """
        if self.by_name:
            return [self._find(name) for name in names]
        numbers = [int(match[1]) if (match := _ILSVRC.match(PurePath(name).name)) else None for name in names]
        if all(number is not None and 1 <= number <= len(self.in_order) for number in numbers):
            return [self.in_order[number - 1] for number in numbers if number is not None]
        if len(names) != len(self.in_order):
            raise UsageError(f"{self.path} has {len(self.in_order)} labels for {len(names)} pictures", _EXPECTED)
        return list(self.in_order)

    def _find(self, name: str) -> str:
        path = PurePath(name)
        label = self.by_name.get(path.name, self.by_name.get(path.stem))
        if label is None:
            raise UsageError(f"{self.path} has no label for {name}", _EXPECTED)
        return label


def _split(line: str) -> list[str]:
    """Return a label, or a name and a label; after a space, a label may have spaces in it."""
    separator = next((character for character in "\t," if character in line), None)
    parts = line.split(None, 1) if separator is None else line.split(separator)[:2]
    if len(parts) == 2 and (match := _WNID_WITH_BOXES.fullmatch(parts[1])):
        return [parts[0], match[1]]
    return [part.strip() for part in parts]


def read_real_labels(path: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Return the classes of ImageNet-1k that are right for pictures of its validation set, by name of the picture.

    Args:
        path: the JSON file of https://github.com/google-research/reassessed-imagenet, a list of classes per picture.
        names: the pictures' paths, whose names are ILSVRC's: `ILSVRC2012_val_00000001.JPEG`.

    Raises:
        UsageError: the file is something else, or a picture has another name.
    """
    hint = "it is real.json of reassessed-imagenet; timm has it as data/_info/imagenet_real_labels.json"
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON", hint) from error
    if not isinstance(lists, list) or not all(isinstance(own, list) for own in lists):
        raise UsageError(f"{path} is not a list with the classes of each picture", hint)
    found = {}
    for name in names:
        match = _ILSVRC.match(PurePath(name).name)
        if match is None or not 1 <= int(match[1]) <= len(lists):
            raise UsageError(
                f"{name} is not a picture of {path}", "its name is of the form ILSVRC2012_val_00000001.JPEG"
            )
        found[name] = lists[int(match[1]) - 1]
    return found

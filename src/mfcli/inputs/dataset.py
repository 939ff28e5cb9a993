"""Pictures with classes: a folder of folders, folders `train` and `val` of these, or a CSV file.

Classes are matched by name, never by position; names that could be confused are not learned. Nothing is opened here.
"""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from mfcli.errors import NoInputsError, UsageError, escape_control_characters
from mfcli.inputs.ground_truth import GroundTruth
from mfcli.inputs.selection import Selection, is_hidden
from mfcli.inputs.source import Source
from mfcli.inputs.walk import walk_folder
from mfcli.results import Progress
from mfcli.store_urls import refuse_addresses

NO_PICTURES = "class has no pictures and is left out", "classes have no pictures and are left out"
"""What `count_names` says of classes."""
_LAYOUTS = "DIR/CLASS/*.jpg, DIR/{train,val}/CLASS/*.jpg, or a CSV file with the columns path,label"
Value = TypeVar("Value")
_MAX_NAMED = 5
_ANNOTATIONS = "val_annotations.txt"
"""The ground truth that Tiny ImageNet has beside the folder of its pictures."""


class Split(StrEnum):
    """What a picture is used for: to learn from, to judge the model by, or to judge it by once more."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


_FOLDERS = {
    "train": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
}


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture of a dataset.

    Attributes:
        source: the file.
        label: the name of its class.
        split: what it is for.
    """

    source: Source
    label: str
    split: Split


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pictures with their classes.

    Attributes:
        pictures: in natural order within each class.
        classes: the names of the classes that have pictures to learn from, sorted.
        empty: names of classes without any picture.
    """

    pictures: tuple[LabelledPicture, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()

    def has(self, split: Split) -> bool:
        """Return whether there are pictures for a purpose."""
        return any(picture.split is split for picture in self.pictures)


def read_dataset(path: Path) -> Dataset:
    """Find the pictures of a dataset and their classes.

    Args:
        path: a folder with a folder for each class, or with folders `train` and `val` (or `valid`, `validation`) and
            perhaps `test` of these; or a CSV file with the columns `path`, from its folder on, and `label`.

    Raises:
        NoInputsError: there are no pictures.
        UsageError: it is none of these, has a single class, a class to judge by that cannot be learned, or names that
            differ only in case or Unicode form, or cannot be the name of a folder.
    """
    found = _find_classes(path)
    _check_names(sorted({label for label, _, _ in found}))
    pictures = _list_labelled(path, found)
    classes = sorted({picture.label for picture in pictures if picture.split is Split.TRAIN})
    unknown = sorted({picture.label for picture in pictures} - set(classes))
    if unknown:
        raise UsageError(
            f"{join_names(unknown)}: pictures to judge by, but none to learn from", "add them to train, too"
        )
    if len(classes) < 2:
        raise UsageError(f"{path} has a single class, {classes[0]}", f"at least two are needed: {_LAYOUTS}")
    empty = sorted({label for label, _, _ in found} - set(classes))
    return Dataset(pictures, tuple(classes), tuple(empty))


def read_judged(
    path: Path, ground_truth: Path | None = None, progress: Progress = lambda _: None
) -> tuple[LabelledPicture, ...]:
    """Find the pictures of a dataset that a model is judged by.

    Args:
        path: a folder with a folder for each class; with folders of these, of which `val` is taken, else `test`; a
            folder of pictures, if there is a ground truth; or a CSV file with the columns `path` and `label`.
        ground_truth: a file with the classes of all pictures in the folder, see `GroundTruth`; None for
            `val_annotations.txt` in the folder, as Tiny ImageNet has it, if it is there.
        progress: told which classes have no pictures.

    Raises:
        NoInputsError: there are no pictures.
        UsageError: it is none of these, or a picture has no class.
    """
    if ground_truth is None:
        path = next((folder for folder in (path, path / "val") if (folder / _ANNOTATIONS).is_file()), path)
        ground_truth = path / _ANNOTATIONS if (path / _ANNOTATIONS).is_file() else None
    if ground_truth is not None:
        return _read_annotated(path, ground_truth)
    found = _find_classes(path)
    pictures = _list_labelled(path, found)
    counts = Counter(picture.source.argument for picture in pictures)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UsageError(f"{path} has {len(twice)} pictures twice: {join_names(twice)}", "keep one row of each")
    splits = {picture.split for picture in pictures}
    chosen = next(split for split in (Split.VAL, Split.TEST, Split.TRAIN) if split in splits)
    if empty := [label for label, split, sources in found if split is chosen and not sources]:
        progress(count_names(empty, *NO_PICTURES))
    return tuple(picture for picture in pictures if picture.split is chosen)


def _read_annotated(folder: Path, ground_truth: Path) -> tuple[LabelledPicture, ...]:
    """Return the pictures of a folder with the classes that a file gives them."""
    if not folder.is_dir():
        refuse_addresses(folder)
        raise UsageError(f"{folder} is not a folder", "ground_truth=FILE gives the classes of the pictures in a folder")
    sources = _list_pictures(folder)
    if not sources:
        raise NoInputsError(f"no pictures in {folder}", _LAYOUTS)
    labels = GroundTruth.read(ground_truth).label([source.input for source in sources])
    return tuple(LabelledPicture(*pair, Split.VAL) for pair in zip(sources, labels, strict=True))


def spread(pictures: Sequence[LabelledPicture], limit: int) -> tuple[LabelledPicture, ...]:
    """Return at most `limit` pictures in their order: equally many of each class if there are, evenly spaced."""
    positions: dict[str, list[int]] = {}
    for position, picture in enumerate(pictures):
        positions.setdefault(picture.label, []).append(position)
    level, sizes = 0, list(map(len, positions.values()))
    while level < max(sizes) and sum(min(size, level + 1) for size in sizes) <= limit:
        level += 1
    larger = [label for label, own in positions.items() if len(own) > level]
    left = limit - sum(min(size, level) for size in sizes)
    with_one_more = set(_space_evenly(larger, min(left, len(larger))))
    chosen: list[int] = []
    for label, own in positions.items():
        chosen += _space_evenly(own, min(len(own), level) + (label in with_one_more))
    return tuple(pictures[position] for position in sorted(chosen))


def _space_evenly(values: Sequence[Value], count: int) -> list[Value]:
    return [values[step * len(values) // count] for step in range(count)]


def _find_classes(path: Path) -> list[tuple[str, Split, list[Source]]]:
    """Return the classes of a dataset, each with its pictures."""
    if path.is_dir():
        found = list(_read_folders(path))
    elif path.is_file():
        found = [(label, split, [source]) for label, split, source in _read_csv(path)]
    else:
        refuse_addresses(path)
        raise UsageError(f"{path} is neither a folder nor a file", _LAYOUTS)
    if not found:
        raise UsageError(f"{path} has no folders with pictures", _LAYOUTS)
    return found


def _list_labelled(path: Path, found: list[tuple[str, Split, list[Source]]]) -> tuple[LabelledPicture, ...]:
    pictures = tuple(LabelledPicture(source, label, split) for label, split, sources in found for source in sources)
    if not pictures:
        raise NoInputsError(f"no pictures in {path}", _LAYOUTS)
    return pictures


def _read_folders(path: Path) -> Iterator[tuple[str, Split, list[Source]]]:
    """Yield each class with its pictures."""
    folders = _list_folders(path)
    splits = {name: _FOLDERS[name] for name in folders if name in _FOLDERS and _list_folders(path / name)}
    if "train" not in splits and len(splits) < len(folders):
        for name in folders:
            yield name, Split.TRAIN, _list_pictures(path / name)
        return
    if len(set(splits.values())) < len(splits):
        raise UsageError(f"{path} has {join_names(sorted(splits))}", "keep one folder to judge by")
    if others := [name for name in folders if name not in splits]:
        raise UsageError(f"{path} has {join_names(others)} beside train", _LAYOUTS)
    for folder, split in splits.items():
        for name in _list_folders(path / folder):
            yield name, split, _list_pictures(path / folder / name)


def _list_folders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UsageError(f"cannot list {path}: {error.strerror}", f"check its permissions: ls -ld {path}") from error


def _list_pictures(folder: Path) -> list[Source]:
    return [Source(found.path, failure=found.failure) for found in walk_folder(str(folder), Selection())]


def _read_csv(path: Path) -> Iterator[tuple[str, Split, Source]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [cell.strip().lower() for cell in next(rows, [])]
            if sorted(header) not in (["label", "path"], ["label", "path", "split"]):
                raise UsageError(
                    f"{path} has the columns {','.join(header) or '(none)'}",
                    "the columns are path,label or path,label,split",
                )
            for row in filter(None, rows):
                yield _parse_row(path, rows.line_num, header, row)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _LAYOUTS) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file in UTF-8", _LAYOUTS) from error


def _parse_row(path: Path, line: int, header: list[str], row: list[str]) -> tuple[str, Split, Source]:
    if len(row) != len(header):
        raise UsageError(
            f"{path}, line {line}: {len(row)} columns instead of {len(header)}",
            "put a path with a comma in double quotes",
        )
    cells = dict(zip(header, row, strict=True))
    split = cells.get("split", "train").strip().lower()
    if not cells["path"] or not cells["label"].strip():
        raise UsageError(f"{path}, line {line}: an empty path or label", "every picture needs both")
    if split not in _FOLDERS:
        raise UsageError(f"{path}, line {line}: unknown split {split!r}", f"one of {', '.join(Split)}")
    return cells["label"].strip(), _FOLDERS[split], Source(str(path.parent / cells["path"]))


def _check_names(names: list[str]) -> None:
    """Check that the names of classes are different to every reader, and can be the names of folders.

    Raises:
        UsageError: they are not.
    """
    seen: dict[str, str] = {}
    for name in names:
        shown = escape_control_characters(name)
        if "/" in name or name.startswith(".") or not name.isprintable():
            raise UsageError(
                f"'{shown}' cannot be the name of a class", "no slash, no dot in front, no control characters"
            )
        key = unicodedata.normalize("NFKC", name).casefold()
        if key in seen:
            raise UsageError(
                f"the classes {seen[key]!r} and {shown!r} differ only in case or Unicode form", "rename or merge them"
            )
        seen[key] = name


def count_names(names: Sequence[str], one: str, several: str) -> str:
    """Return how many names there are, what is said of one or of several, and the first few."""
    return f"{len(names)} {one if len(names) == 1 else several}: {join_names(names)}"


def join_names(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more

"""The user's class labels: given as names, or read from text, CSV or JSON, in head order or with indices.

A file that could be read in two ways is refused: a wrong order would answer every picture with another class's name.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

from mfcli.errors import UsageError
from mfcli.models.labels import make_class_labels
from mfcli.results import Label

_EXPECTED = "expected: one name per line in the head's order, CSV with class_index, wnid or name columns, or JSON"

_NAME_COLUMNS = ("name", "label", "class", "class_name")
_INDEX_COLUMNS = ("class_index", "index", "id", "class_id")
_SEPARATORS = ",;\t"
_FROM_ZERO = "indices begin at 0"
_WNID = re.compile(r"n\d{8}")
_INDEXED_LINE = re.compile(r"\s*(\d+)\s*[,;:\t ]\s*(\S.*)")
_SYNSET_LINE = re.compile(r"(n\d{8})[,;:\t ]\s*(\S.*)")


Labels = str | os.PathLike[str] | Iterable[str | Label]
"""A labels file, or a name per class in the head's order."""


def make_labels(labels: Labels) -> tuple[Label, ...]:
    """Return labels from names, or from the file that a string or a path names.

    Raises:
        TypeError: they are neither, or have no order.
        UsageError: see `read_labels`.
    """
    if isinstance(labels, str | os.PathLike):
        return read_labels(Path(labels))
    if isinstance(labels, Mapping | Set) or not isinstance(labels, Iterable):
        raise TypeError(f"labels is of type {type(labels).__name__} instead of the path of a file, or a list of names")
    return tuple(_label_of(label, index) for index, label in enumerate(labels))


def _label_of(label: str | Label, index: int) -> Label:
    if not isinstance(label, str | Label):
        raise TypeError(f"labels[{index}] is of type {type(label).__name__} instead of str or Label")
    return Label(None, label) if isinstance(label, str) else label


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read a labels file.

    Text has one name per line in the head's order, or `index,name`, `index name` or `wnid name` on every line. CSV,
    also with semicolons or tabs, has a header with `name` (or `label`, `class`, `class_name`) and, in any order,
    `class_index` (or `index`, `id`, `class_id`) and `wnid`. JSON is a list of names, `{"0": "name"}`, `{"name": 0}`,
    `{"0": ["wnid", "name"]}`, or a config.json with `id2label` (Hugging Face) or `label_names` (timm). Names that are
    all WordNet ids of ImageNet get ImageNet's names.

    Raises:
        UsageError: the file cannot be read, is none of these, has an empty name, or indices with gaps or duplicates.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = _parse_json(path, text)
        labels = _parse_csv(path, text) if labels is None else labels
        labels = _parse_lines(path, text) if labels is None else labels
    except OSError as error:
        raise UsageError(f"cannot read labels from {path}: {error.strerror}", _EXPECTED) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"labels file {path} is not UTF-8 text", _EXPECTED) from error
    if not labels or not text.strip():
        raise UsageError(f"labels file {path} contains no names", _EXPECTED)
    empty = next((index for index, label in enumerate(labels) if not label.name), None)
    if empty is not None:
        raise UsageError(f"labels file {path}: the name of class {empty} is empty", _EXPECTED)
    return _name_wnids(labels)


def _name_wnids(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """Return labels whose names are all WordNet ids with ImageNet's names, if it has them."""
    if not all(label.wnid in (None, label.name) for label in labels):
        return labels
    named = make_class_labels([label.name for label in labels])
    return labels if named[0].wnid is None else named


def _parse_lines(path: Path, text: str) -> tuple[Label, ...]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    matches = [_INDEXED_LINE.fullmatch(line) for line in lines]
    if all(matches):
        hint = f"{_FROM_ZERO}; if the numbers belong to the names, add a first line with: name"
        return _order(path, ((match[1], Label(None, match[2])) for match in matches if match), hint)
    synsets = [_SYNSET_LINE.fullmatch(line) for line in lines]
    if all(synsets):
        return tuple(Label(match[1], match[2]) for match in synsets if match)
    return tuple(Label(None, line) for line in lines)


def _parse_csv(path: Path, text: str) -> tuple[Label, ...] | None:
    """Return the labels of a CSV file with a header; None where the first line is no header."""
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    header = [cell.strip().lower() for cell in next(csv.reader(io.StringIO(text), delimiter=separator), [])]
    name_at = next((header.index(name) for name in (*_NAME_COLUMNS, "wnid") if name in header), None)
    # the first class of a text file may be called "label" or "class"
    is_header = len(header) > 1 or header in (["name"], ["wnid"]) or path.suffix.lower() == ".csv"
    if name_at is None or not is_header:
        return None
    rows = list(filter(None, list(csv.reader(io.StringIO(text), delimiter=separator))[1:]))
    for row in rows:
        if len(row) != len(header):
            raise UsageError(
                f"labels file {path}: {len(row)} columns instead of {len(header)} in {','.join(row)!r}",
                f"put a name with {separator!r} in double quotes",
            )
    index_at = next((header.index(name) for name in _INDEX_COLUMNS if name in header), None)
    wnid_at = header.index("wnid") if "wnid" in header else None
    if index_at is not None and wnid_at is None and all(_WNID.fullmatch(row[index_at].strip()) for row in rows):
        index_at, wnid_at = None, index_at  # a column `id` of WordNet ids
    wnids = [row[wnid_at].strip() or None if wnid_at is not None else None for row in rows]
    labels = tuple(Label(wnid, row[name_at].strip()) for wnid, row in zip(wnids, rows, strict=True))
    if index_at is None:
        return labels
    return _order(path, ((row[index_at], label) for row, label in zip(rows, labels, strict=True)))


def _parse_json(path: Path, text: str) -> tuple[Label, ...] | None:
    """Return the labels of a JSON file; None where it is not JSON."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text, object_pairs_hook=partial(_make_unique, path))
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() == ".json":
            raise UsageError(f"labels file {path} is not JSON: {error}", _EXPECTED) from error
        return None  # the first name may begin with a bracket
    if isinstance(value, dict):
        pretrained = value.get("pretrained_cfg")
        configs = [value, pretrained if isinstance(pretrained, dict) else {}]
        names = next((config["label_names"] for config in configs if config.get("label_names") is not None), None)
        if names is not None:
            descriptions = next((c["label_descriptions"] for c in configs if "label_descriptions" in c), None) or {}
            return _parse_json_names(path, names, descriptions)
        value = value.get("id2label", value)
    return _parse_json_names(path, value, {})


def _make_unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of pairs; Python would take the last one of several with the same key."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"labels file {path}: {twice!r} is there twice", "give each class one line")
    return values


def _parse_json_names(path: Path, names: Any, descriptions: Any) -> tuple[Label, ...]:
    if not isinstance(descriptions, dict):
        raise _not_labels(path)
    if isinstance(names, list) and names:
        return tuple(_make_label(path, name, descriptions) for name in names)
    return _parse_json_mapping(path, names, descriptions)


def _parse_json_mapping(path: Path, value: Any, descriptions: Mapping[str, Any]) -> tuple[Label, ...]:
    if not isinstance(value, dict) or not value:
        raise _not_labels(path)
    are_indices = [all(_is_index(item) for item in items) for items in (value.keys(), value.values())]
    if all(are_indices) or not any(are_indices):
        raise _not_labels(path)
    pairs: Iterable[tuple[Any, Any]] = value.items() if are_indices[0] else ((v, k) for k, v in value.items())
    return _order(path, ((str(index), _make_label(path, name, descriptions)) for index, name in pairs))


def _make_label(path: Path, value: Any, descriptions: Mapping[str, Any]) -> Label:
    """Return the label of a name, of a WordNet id with a description, or of `[wnid, name]`."""
    wnid = None
    if isinstance(value, list) and len(value) == 2:
        wnid, value = value
    elif isinstance(value, str) and _WNID.fullmatch(value):
        wnid, value = value, descriptions.get(value, value)
    if not isinstance(value, str) or not isinstance(wnid, str | None):
        raise _not_labels(path)
    return Label(wnid, value.strip())


def _is_index(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (isinstance(value, str) and value.isascii() and value.isdigit())


def _order(path: Path, pairs: Iterable[tuple[str, Label]], hint: str = _FROM_ZERO) -> tuple[Label, ...]:
    """Return labels in the order of their indices, which must be 0, 1, 2, ... without gaps and duplicates."""
    found: dict[int, Label] = {}
    for index, label in pairs:
        text = index.strip()
        if not _is_index(text) or len(text) > 9:
            raise UsageError(f"labels file {path}: {text!r} is not a class index", _EXPECTED)
        if int(text) in found:
            raise UsageError(f"labels file {path}: the class index {int(text)} is there twice", hint)
        found[int(text)] = label
    missing = next((index for index in range(len(found)) if index not in found), None)
    if missing is not None:
        message = f"labels file {path}: the class indices are not 0 to {len(found) - 1}, {missing} is missing"
        raise UsageError(message, hint)
    return tuple(found[index] for index in range(len(found)))


def _not_labels(path: Path) -> UsageError:
    return UsageError(f"labels file {path} is JSON without class names", _EXPECTED)

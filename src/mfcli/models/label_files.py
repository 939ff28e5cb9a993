"""The user's class labels: given as names, or read from text, CSV or JSON, in head order or with indices.

A file that could be read in two ways is refused: a wrong order would answer every picture with another class's name.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from mfcli.errors import UsageError
from mfcli.results import Label

_EXPECTED = "expected: one name per line in the head's order, CSV with class_index, wnid or name columns, or JSON"

_NAME_COLUMNS = ("name", "label", "class", "class_name")
_INDEX_COLUMNS = ("class_index", "index", "id", "class_id")
_WNID = re.compile(r"n\d{8}")
_INDEXED_LINE = re.compile(r"\s*(\d+)\s*[,;\t ]\s*(\S.*)")


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

    Text has one name per line in the head's order, or `index,name` or `index name` on every line. CSV has a header with
    `name` (or `label`, `class`, `class_name`) and, in any order, `class_index` (or `index`, `id`, `class_id`) and
    `wnid`. JSON is a list of names, `{"0": "name"}`, `{"name": 0}`, `{"0": ["wnid", "name"]}`, or a config.json with
    `id2label` (Hugging Face) or `label_names` (timm).

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
    if not labels or any(not label.name for label in labels):
        raise UsageError(f"labels file {path} contains an empty name, or none at all", _EXPECTED)
    return labels


def _parse_lines(path: Path, text: str) -> tuple[Label, ...]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    matches = [_INDEXED_LINE.fullmatch(line) for line in lines]
    if all(matches):
        return _order(path, ((match[1], Label(None, match[2])) for match in matches if match))
    return tuple(Label(None, line) for line in lines)


def _parse_csv(path: Path, text: str) -> tuple[Label, ...] | None:
    """Return the labels of a CSV file with a header; None where the first line is no header."""
    header = [cell.strip().lower() for cell in next(csv.reader(io.StringIO(text)), [])]
    name_at = next((header.index(name) for name in _NAME_COLUMNS if name in header), None)
    if name_at is None or (len(header) == 1 and header[0] != "name"):
        return None
    rows = list(filter(None, list(csv.reader(io.StringIO(text)))[1:]))
    for row in rows:
        if len(row) != len(header):
            raise UsageError(
                f"labels file {path}: {len(row)} columns instead of {len(header)} in {','.join(row)!r}",
                "put a name with a comma in double quotes",
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
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        pretrained = value.get("pretrained_cfg")
        configs = [value, pretrained if isinstance(pretrained, dict) else {}]
        names = next((config["label_names"] for config in configs if config.get("label_names") is not None), None)
        if names is not None:
            descriptions = next((c["label_descriptions"] for c in configs if "label_descriptions" in c), None) or {}
            return _parse_json_names(path, names, descriptions)
        value = value.get("id2label", value)
    return _parse_json_names(path, value, {})


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


def _order(path: Path, pairs: Iterable[tuple[str, Label]]) -> tuple[Label, ...]:
    """Return labels in the order of their indices, which must be 0, 1, 2, ... without gaps and duplicates."""
    found: dict[int, Label] = {}
    count = 0
    for index, label in pairs:
        count += 1
        text = index.strip()
        if not _is_index(text) or len(text) > 9:
            raise UsageError(f"labels file {path}: {text!r} is not a class index", _EXPECTED)
        found[int(text)] = label
    if len(found) != count or sorted(found) != list(range(count)):
        problem = _describe_indices(sorted(found), count)
        raise UsageError(
            f"labels file {path}: the class indices are not 0 to {count - 1}, {problem}",
            "indices begin at 0; if the numbers belong to the names, add a first line with: name",
        )
    return tuple(found[index] for index in range(count))


def _describe_indices(indices: Sequence[int], count: int) -> str:
    if len(indices) != count:
        return "one is there twice"
    missing = next(index for index in range(count) if index not in set(indices))
    return f"{missing} is missing"


def _not_labels(path: Path) -> UsageError:
    return UsageError(f"labels file {path} is JSON without class names", _EXPECTED)

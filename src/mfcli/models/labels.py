"""Class labels: ImageNet's, for artifacts that are built, or the user's from a file.

Predictions take their labels from the artifact, unless a labels file is given.
"""

import csv
import gzip
import io
import json
from pathlib import Path

from mfcli.errors import ModelError, UsageError
from mfcli.results import Label

_EXPECTED = "expected: one name a line in the head's order, or CSV with the columns wnid and name"

IMAGENET_FILE = Path(__file__).parent / "data" / "imagenet.tsv.gz"
"""WordNet id, name and lists of every ImageNet class, from timm's ImageNetInfo; `scripts/model_data.py` wrote it.

The names are WordNet's lemmas; its licence, WORDNET_LICENSE, is beside it.
"""
_LISTS = {1000: "in1k", 21841: "in21k"}


def load_imagenet_labels(num_classes: int) -> tuple[Label, ...]:
    """Return the classes of ImageNet-1k (1000) or of the full ImageNet (21841) in head order.

    Raises:
        ModelError: there is no ImageNet list of this length.
    """
    if num_classes not in _LISTS:
        raise ModelError(f"no ImageNet class list has {num_classes} classes")
    wanted = _LISTS[num_classes]
    return tuple(Label(wnid, name) for wnid, name, lists in _read_imagenet() if wanted in lists.split())


def look_up_wnids(wnids: list[str]) -> tuple[Label, ...]:
    """Return the labels of WordNet ids, in the given order."""
    names = {wnid: name for wnid, name, _ in _read_imagenet()}
    return tuple(Label(wnid, names[wnid]) for wnid in wnids)


def _read_imagenet() -> list[list[str]]:
    with gzip.open(IMAGENET_FILE, "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def make_numbered_labels(num_classes: int) -> tuple[Label, ...]:
    """Return the labels class_0, class_1, ... for a head whose classes have no names."""
    return tuple(Label(None, f"class_{index}") for index in range(num_classes))


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read a labels file: one name a line, or CSV with a header that has `name` and, if known, `wnid`.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text, or contains no name or an empty one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if _is_json(text):
            raise UsageError(f"labels file {path} is JSON", _EXPECTED)
        header = [cell.strip().lower() for cell in next(csv.reader(io.StringIO(text)), [])]
        if "name" in header:
            labels = _parse_csv(path, header, text)
        else:
            labels = tuple(Label(None, line.strip()) for line in text.rstrip().split("\n"))
    except OSError as error:
        raise UsageError(f"cannot read labels from {path}: {error.strerror}", _EXPECTED) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"labels file {path} is not UTF-8 text", _EXPECTED) from error
    if any(not label.name for label in labels):
        raise UsageError(f"labels file {path} contains an empty name, or none at all", _EXPECTED)
    return labels


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, whose lines would otherwise be taken for names."""
    try:
        return text.lstrip()[:1] in ("{", "[") and isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _parse_csv(path: Path, header: list[str], text: str) -> tuple[Label, ...]:
    name_at, wnid_at = header.index("name"), header.index("wnid") if "wnid" in header else None
    labels = []
    for row in filter(None, list(csv.reader(io.StringIO(text)))[1:]):
        if len(row) != len(header):
            raise UsageError(
                f"labels file {path}: {len(row)} columns instead of {len(header)} in {','.join(row)!r}",
                "put a name with a comma in double quotes",
            )
        wnid = row[wnid_at].strip() or None if wnid_at is not None else None
        labels.append(Label(wnid, row[name_at].strip()))
    if not labels:
        raise UsageError(f"labels file {path} contains an empty name, or none at all", _EXPECTED)
    return tuple(labels)

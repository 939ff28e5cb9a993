"""Class labels of artifacts that are built: ImageNet's, or numbered ones. label_files.py reads the user's."""

import contextlib
import csv
import gzip
import re
from collections.abc import Sequence
from pathlib import Path

from mfcli.errors import ModelError
from mfcli.results import Label

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


def load_all_imagenet_labels() -> tuple[Label, ...]:
    """Return the 21,842 classes of both lists, sorted by WordNet id."""
    return tuple(Label(wnid, name) for wnid, name, _ in _read_imagenet())


def look_up_wnids(wnids: list[str]) -> tuple[Label, ...]:
    """Return the labels of WordNet ids, in the given order."""
    names = {wnid: name for wnid, name, _ in _read_imagenet()}
    return tuple(Label(wnid, names[wnid]) for wnid in wnids)


def _read_imagenet() -> list[list[str]]:
    with gzip.open(IMAGENET_FILE, "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def make_class_labels(names: Sequence[str]) -> tuple[Label, ...]:
    """Return the labels of the user's own classes; where all are WordNet ids, with ImageNet's names of these."""
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        with contextlib.suppress(KeyError):
            return look_up_wnids(list(names))
    return tuple(Label(None, name) for name in names)


def make_numbered_labels(num_classes: int) -> tuple[Label, ...]:
    """Return the labels class_0, class_1, ... for a head whose classes have no names."""
    return tuple(Label(None, f"class_{index}") for index in range(num_classes))

"""WordNet's concepts over the classes of a head: cat over tabby and Siamese, animal over cat and goldfish.

WordNet is a graph: a dog is a canine and a domestic animal, and a class below a concept by two ways counts once. The
concept of a picture is the smallest that holds a given share of the probability and says enough to be named. What says
enough is decided in `scripts/concept_data.py`, which writes the data; a concept over more than half of the head's
classes is not named either.
"""

import functools
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import UsageError
from mfcli.results import Concept, Label

HIERARCHY_FILE = Path(__file__).parent / "data" / "hierarchy.bin.gz"
NAMES_FILE = Path(__file__).parent / "data" / "concepts.txt.gz"
"""The synsets of WordNet 3.0 at and above ImageNet's classes, and the names of those with synsets below them.

`scripts/concept_data.py` wrote both; WordNet's licence is beside them.
"""
MAX_PARENTS = 3
_WNID = re.compile(r"n\d{8}", re.ASCII)

Indices = NDArray[np.intp]


class Hierarchy:
    """The synsets at and above ImageNet's classes, as columns: M with synsets below them, then those without.

    A synset stands before those below it, and the more of ImageNet's classes it has, the earlier.

    Attributes:
        numbers: the digits of their ids, int32 (N,).
        parents: columns of their hypernyms, -1 for none, int16 (MAX_PARENTS, N).
        is_telling: whether each of the first M says enough to be named, bool (M,).
    """

    def __init__(self) -> None:
        data = _decompress(HIERARCHY_FILE)
        count, inner = np.frombuffer(data, "<i4", 2).tolist()
        self.numbers = np.frombuffer(data, "<i4", count, 8)
        self.parents = np.frombuffer(data, "<i2", MAX_PARENTS * count, 8 + 4 * count).reshape(MAX_PARENTS, count)
        self.is_telling = np.frombuffer(data, "?", inner, len(data) - inner)
        self._by_number = np.argsort(self.numbers)

    def find(self, wnids: Sequence[str | None]) -> Indices:
        """Return the columns of ids, -1 for what is not at or above a class of ImageNet."""
        numbers = np.array([int(wnid[1:]) if wnid and _WNID.fullmatch(wnid) else -1 for wnid in wnids], np.intp)
        places = np.searchsorted(self.numbers, numbers, sorter=self._by_number)
        columns = self._by_number[np.minimum(places, len(self.numbers) - 1)]
        return np.where(self.numbers[columns] == numbers, columns, -1)

    def wnid(self, column: int) -> str:
        """Return the id of a column."""
        return f"n{self.numbers[column]:08}"

    def climb(self, columns: Indices) -> tuple[Indices, Indices]:
        """Return each pair of a synset at or above one of `columns`, and the position of that one, sorted by synset."""
        count = max(len(columns), 1)
        new = columns * count + np.arange(len(columns))
        pairs = [new]
        while len(new):
            below, positions = np.divmod(new, count)
            above = self.parents[:, below].astype(np.intp)
            new = _sort_unique((above * count + positions)[above >= 0])
            pairs.append(new)
        above, positions = np.divmod(_sort_unique(np.concatenate(pairs)), count)
        return above, positions


def _sort_unique(numbers: Indices) -> Indices:
    """Return the different numbers; np.unique imports numpy.ma, which takes longer than all of this module."""
    numbers = np.sort(numbers)
    is_first: NDArray[np.bool_] = np.diff(numbers, prepend=-1) != 0
    return numbers[is_first]


@functools.cache
def load_hierarchy() -> Hierarchy:
    """Return WordNet's synsets at and above the classes of ImageNet."""
    return Hierarchy()


@functools.cache
def load_names() -> list[str]:
    """Return the names of each synset with synsets below it, joined by commas, by column."""
    return _decompress(NAMES_FILE).decode().split("\n")


def _decompress(path: Path) -> bytes:
    return zlib.decompress(path.read_bytes(), wbits=31)  # the gzip module takes 2 ms to import


def ancestors(wnid: str) -> tuple[Label, ...]:
    """Return the concepts above a synset of WordNet, the one with the fewest classes of ImageNet first.

    Raises:
        UsageError: it is not at or above a class of ImageNet.
    """
    hierarchy = load_hierarchy()
    column = hierarchy.find([wnid])
    if column[0] < 0:
        raise UsageError(f"wnid={wnid!r} is not at or above a class of ImageNet", "wnid='n02123045'")
    above, _ = hierarchy.climb(column)
    names = load_names()
    return tuple(Label(hierarchy.wnid(i), names[i]) for i in reversed(above.tolist()) if i != column[0])


def shorten(name: str) -> str:
    """Return the first of the names that commas separate."""
    return name.split(",")[0].strip()


class HeadConcepts:
    """The concepts over the classes of one head; none if its labels have no WordNet ids.

    Attributes:
        columns: their columns in the hierarchy, (K,): the head's classes and all above them, the fewest classes first.
        sizes: how many of the head's classes each has, (K,).
        named: places in `columns` of those that say enough to be named.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._hierarchy = load_hierarchy()
        found = self._hierarchy.find([label.wnid for label in labels])
        with_id = np.flatnonzero(found >= 0)
        self._class_of = dict(zip(found[with_id].tolist(), with_id.tolist(), strict=True))
        columns, positions = self._hierarchy.climb(found[with_id])
        self._members = with_id[positions]
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        columns, sizes = columns[starts], np.diff(starts, append=len(columns))
        order = np.lexsort((-columns, sizes))
        self.columns: Indices = columns[order]
        self.sizes: Indices = sizes[order]
        self._starts = starts[order]
        self.named = self._select_named(np.bincount(found[with_id], minlength=len(self._hierarchy.numbers)))
        sizes = self.sizes[self.named]
        self._ends = np.cumsum(sizes)
        shift = self._starts[self.named] - self._ends + sizes
        self._terms = self._members[np.repeat(shift, sizes) + np.arange(sizes.sum())]

    def _select_named(self, labels_at: Indices) -> Indices:
        """A class of the head with none below it, or a telling concept over at least two classes and at most half."""
        is_telling = np.zeros(len(labels_at), np.bool_)
        is_telling[: len(self._hierarchy.is_telling)] = self._hierarchy.is_telling
        is_class = self.sizes == labels_at[self.columns]
        is_between = (self.sizes > 1) & (self.sizes <= len(self._labels) / 2)
        return np.flatnonzero(is_class | (is_telling[self.columns] & is_between))

    def name(self, probs: NDArray[np.float64], confidence: float) -> Concept | None:
        """Return the smallest concept that says enough and holds `confidence` of the probability; None where none does.

        Args:
            probs: of all classes of the head, float64 (C,).
            confidence: 0.5 to 1; below it, two concepts could hold it that have no class in common.
        """
        if not len(self.named):
            return None
        sums = self.sum(probs)
        first = int((sums >= confidence).argmax())
        if sums[first] < confidence:
            return None
        place = self.named[first]
        column = int(self.columns[place])
        prob = min(float(sums[first]), 1.0)  # the sum of all can exceed 1 by an ulp
        return Concept(self._hierarchy.wnid(column), self.label(column), prob, int(self.sizes[place]))

    def sum(self, probs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of each named concept, float64, from that of all classes, float64 (C,)."""
        return np.add.reduceat(probs[self._terms], self._ends - self.sizes[self.named])

    def label(self, column: int) -> str:
        """Return the first name of a class of the head, or of a concept."""
        index = self._class_of.get(column)
        return shorten(load_names()[column] if index is None else self._labels[index].name)

    def members(self, column: int) -> Indices:
        """Return the indices of the head's classes at or below a synset, sorted; none where there is none."""
        places = np.flatnonzero(self.columns == column)
        if not len(places):
            return np.empty(0, np.intp)
        start = self._starts[places[0]]
        return self._members[start : start + self.sizes[places[0]]]

"""Write the data of mfcli.models.concepts and mfcli.models.meanings from WordNet 3.0, whose ids are ImageNet's.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python scripts/concept_data.py wordnet/usr/share/wordnet

The folder has WordNet's database: data.noun, noun.exc and cntlist.rev (see wndb(5WN), cntlist(5WN)). Written are all
synsets at and above the classes of ImageNet. A database in which a class has another id or other names is refused.

Some concepts say too little to be named: those with more than `MAX_SHARE` of ImageNet's classes (artifact, organism,
instrumentality; animal and plant are the widest that stay), and those less than `MIN_DEPTH` steps below entity on the
longest way (matter). A word that does not occur in the texts that WordNet's authors tagged gives way to a direct
hypernym that does, if that has at most `MAX_WIDENING` times its classes and says enough: mammal is named for placental.
Kinds of people are not named: many are judgements that no picture shows (Yang et al.,
https://doi.org/10.1145/3351095.3375709).
"""

import argparse
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfcli.models.concepts import HIERARCHY_FILE, MAX_PARENTS, NAMES_FILE
from mfcli.models.labels import load_all_imagenet_labels, load_imagenet_labels
from mfcli.models.meanings import MEANINGS_FILE, make_key

ENTITY = "n00001740"
"""The synset above all others."""
PERSON = "n00007846"
NOUN = "1"
"""The part of speech in WordNet's sense keys."""
MAX_SHARE = 0.2
"""Of the 21,841 classes of the full ImageNet."""
MIN_DEPTH = 4
MAX_WIDENING = 1.25
HYPERNYMS = ("@", "@i")
"""Pointers to a broader synset, from a class and from an instance."""


@dataclass(frozen=True)
class Synset:
    """A line of data.noun: its lemmas, sense keys as in cntlist.rev, ids of its hypernyms, and its definition."""

    lemmas: tuple[str, ...]
    sense_keys: tuple[str, ...]
    hypernyms: tuple[str, ...]
    gloss: str


def read_synsets(path: Path) -> dict[str, Synset]:
    """Return all synsets of data.noun by WordNet id."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(parse_synset(line) for line in lines if not line.startswith("  "))  # the licence is indented


def parse_synset(line: str) -> tuple[str, Synset]:
    """Return id and synset of a line: offset lex_filenum pos w_cnt (word lex_id)... p_cnt (pointer)... | gloss."""
    head, gloss = line.split(" | ", 1)
    offset, file_number, _, word_count, *rest = head.split()
    words, lex_ids = rest[0 : 2 * int(word_count, 16) : 2], rest[1 : 2 * int(word_count, 16) : 2]
    pointers = rest[2 * len(words) + 1 :]
    hypernyms = tuple(f"n{pointers[i + 1]}" for i in range(0, len(pointers), 4) if pointers[i] in HYPERNYMS)
    keys = (f"{w.lower()}%{NOUN}:{file_number}:{int(i, 16):02}::" for w, i in zip(words, lex_ids, strict=True))
    lemmas = tuple(word.replace("_", " ") for word in words)
    return f"n{offset}", Synset(lemmas, tuple(keys), hypernyms, gloss.split("; ")[0].split(' "')[0].strip())


def read_tag_counts(path: Path) -> Counter[str]:
    """Return how often each sense occurs in the texts that WordNet's authors tagged, by sense key."""
    counts: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        counts[key] += int(count)
    return counts


class Closure:
    """The synsets at and above ImageNet's classes.

    Attributes:
        wnids: their ids: those with synsets below them, then the others; the more classes, the earlier.
        inner: the former.
        classes: how many classes of the full ImageNet are at or below each synset.
    """

    def __init__(self, synsets: dict[str, Synset], tag_counts: Counter[str]) -> None:
        self.synsets = synsets
        self._tag_counts = tag_counts
        self._ancestors: dict[str, frozenset[str]] = {}
        for label in load_all_imagenet_labels():
            if label.wnid not in synsets or ", ".join(synsets[label.wnid].lemmas) != label.name:
                raise SystemExit(f"{label.wnid} is not {label.name!r} in this database: it is not WordNet 3.0's")
        full = load_imagenet_labels(21841)
        self.classes = Counter(above for label in full if label.wnid for above in self.climb(label.wnid))
        found = frozenset(
            above for label in load_all_imagenet_labels() if label.wnid for above in self.climb(label.wnid)
        )
        inner = {above for wnid in found for above in synsets[wnid].hypernyms}
        self.inner = sorted(inner, key=lambda wnid: (-self.classes[wnid], len(self.climb(wnid)), wnid))
        self.wnids = self.inner + sorted(found - inner)

    def climb(self, wnid: str) -> frozenset[str]:
        """Return a synset and all above it."""
        if wnid not in self._ancestors:
            above = map(self.climb, self.synsets[wnid].hypernyms)
            self._ancestors[wnid] = frozenset({wnid}).union(*above)
        return self._ancestors[wnid]

    def is_telling(self, wnid: str) -> bool:
        """Return whether a synset says enough to be named."""
        if PERSON in self.climb(wnid) - {wnid}:
            return False
        return self._is_narrow(wnid) and not any(
            self._count_tags(wnid) == 0 < self._count_tags(above)
            and self.classes[above] <= MAX_WIDENING * self.classes[wnid]
            and self._is_narrow(above)
            for above in self.synsets[wnid].hypernyms
        )

    def _is_narrow(self, wnid: str) -> bool:
        return self.classes[wnid] <= MAX_SHARE * self.classes[ENTITY] and self._measure_depth(wnid) >= MIN_DEPTH

    def _measure_depth(self, wnid: str) -> int:
        return 1 + max(map(self._measure_depth, self.synsets[wnid].hypernyms), default=-1)

    def _count_tags(self, wnid: str) -> int:
        return sum(self._tag_counts[key] for key in self.synsets[wnid].sense_keys)


def make_hierarchy(closure: Closure) -> bytes:
    """Return N and M as int32, and the arrays of `mfcli.models.concepts.Hierarchy`; all in little-endian order."""
    columns = {wnid: column for column, wnid in enumerate(closure.wnids)}
    parents = np.full((MAX_PARENTS, len(columns)), -1, "<i2")
    for wnid, column in columns.items():
        for row, above in enumerate(closure.synsets[wnid].hypernyms):
            parents[row, column] = columns[above]
    numbers = [len(columns), len(closure.inner), *(int(wnid[1:]) for wnid in columns)]
    are_telling = [closure.is_telling(wnid) for wnid in closure.inner]
    return np.array(numbers, "<i4").tobytes() + parents.tobytes() + np.array(are_telling).tobytes()


def list_keys(closure: Closure) -> dict[str, set[str]]:
    """Return the ids of each lemma."""
    keys = defaultdict(set)
    for wnid in closure.wnids:
        for lemma in closure.synsets[wnid].lemmas:
            keys[make_key(lemma)].add(wnid)
    return keys


def read_plurals(path: Path, keys: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield the irregular plurals in noun.exc, and the singulars that are lemmas here."""
    for line in path.read_text(encoding="utf-8").splitlines():
        plural, *singulars = map(make_key, line.split())
        known = [singular for singular in singulars if singular in keys]
        if known and plural not in keys:
            yield plural, known[0]


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wordnet", type=Path, help="the folder of data.noun")
    folder = parser.parse_args().wordnet
    closure = Closure(read_synsets(folder / "data.noun"), read_tag_counts(folder / "cntlist.rev"))
    keys = list_keys(closure)
    ambiguous = sorted(set().union(*(wnids for wnids in keys.values() if len(wnids) > 1)))
    meanings = {
        "glosses": {wnid: closure.synsets[wnid].gloss for wnid in ambiguous},
        "plurals": dict(read_plurals(folder / "noun.exc", keys)),
    }
    names = "\n".join(", ".join(closure.synsets[wnid].lemmas) for wnid in closure.inner)
    files = {
        HIERARCHY_FILE: make_hierarchy(closure),
        NAMES_FILE: names.encode(),
        MEANINGS_FILE: json.dumps(meanings, ensure_ascii=False, separators=(",", ":")).encode(),
    }
    for path, content in files.items():
        path.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main()

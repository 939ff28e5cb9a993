"""From a word to the concept that it names: `sports car`, `Sports-Cars`, `crane#1`, a WordNet id, or a class's name.

A word's meanings are the synsets at and above ImageNet's classes that have it among their names. Those whose first name
it is win over the others, so that dog is the animal, not the andiron. Numbers count all meanings in the order of their
ids, whichever model is used.
"""

import functools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfcli.errors import UsageError
from mfcli.models.concepts import HeadConcepts, Indices, load_hierarchy, load_names, shorten
from mfcli.models.labels import load_all_imagenet_labels, load_imagenet_labels
from mfcli.results import Label

MEANINGS_FILE = Path(__file__).parent / "data" / "meanings.json.gz"
"""Definitions of the synsets that share a name, and irregular plurals, both from WordNet 3.0.

`scripts/concept_data.py` wrote it.
"""
_MODELS = {1000: "caformer_s18", 21841: "caformer_s18_in21k"}
"""A model for each of ImageNet's lists of classes."""
_ENDINGS = (("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("men", "man"))
"""Endings of plurals and of their singulars; those of morphy(7WN) but for what "es" covers."""
_NUMBERED = re.compile(r"(.+)#(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Meaning:
    """A meaning of a word.

    Attributes:
        column: the synset's column in the hierarchy.
        wnid: its WordNet id.
        names: its names, joined by commas.
        choice: what names this meaning alone: `crane#2`.
        is_first_name: whether the word is the first of the names.
    """

    column: int
    wnid: str
    names: str
    choice: str
    is_first_name: bool

    @property
    def gloss(self) -> str:
        """WordNet's definition; empty where no other synset has any of the names."""
        gloss: str = _load_extras()["glosses"].get(self.wnid, "")
        return gloss


@dataclass(frozen=True, slots=True)
class Target:
    """What is looked for: a concept or a class, and the indices of its classes in a head."""

    wnid: str | None
    label: str
    members: Indices


class AmbiguousWordError(UsageError):
    """A word has several meanings that the model has classes of: `meanings`."""

    def __init__(self, word: str, meanings: Sequence[Meaning]) -> None:
        choices = " or ".join(meaning.choice for meaning in meanings)
        super().__init__(f"{word!r} has {len(meanings)} meanings", f"name one: {choices}, or its WordNet id")
        self.meanings = tuple(meanings)


def make_key(text: str) -> str:
    """Return a name as it is compared: without case, spaces, hyphens and underscores."""
    return "".join(text.casefold().replace("-", " ").replace("_", " ").split())


def find_similar(word: str, names: Mapping[str, str], count: int) -> list[str]:
    """Return the names that a word may be a misspelling of, the nearest first.

    Args:
        word: in any form.
        names: by key, see `make_key`.
        count: names at most.
    """
    import difflib

    key = make_key(word)
    similar = [other for other in names if other[:1] == key[:1] and abs(len(other) - len(key)) <= 2]  # for speed
    return [names[other] for other in difflib.get_close_matches(key, similar, n=count, cutoff=0.7)]


def find_meanings(word: str) -> tuple[Meaning, ...]:
    """Return the meanings of a word, singular or plural, in the order of their ids; none if it is unknown."""
    for key in _list_singulars(make_key(word)):
        columns = [column for column, keys in enumerate(_load_keys()) if key in keys and key in keys.split(",")]
        if columns:
            return tuple(_make_meaning(key, *item) for item in enumerate(sorted(columns, key=_get_wnid), start=1))
    return ()


def _make_meaning(key: str, number: int, column: int) -> Meaning:
    names = _load_all_names()[column]
    name = next(name for name in names.split(", ") if make_key(name) == key)
    return Meaning(column, _get_wnid(column), names, f"{name}#{number}", make_key(shorten(names)) == key)


def _get_wnid(column: int) -> str:
    return load_hierarchy().wnid(column)


def _list_singulars(key: str) -> Iterator[str]:
    yield key
    if irregular := _load_extras()["plurals"].get(key):
        yield irregular
    for plural, singular in _ENDINGS[1:]:
        if key.endswith(plural) and len(key) > len(plural):
            yield key.removesuffix(plural) + singular


def resolve(word: str, labels: Sequence[Label], concepts: HeadConcepts) -> Target:
    """Return what a word means to a head: a concept that it has classes of, or a class with this name.

    Args:
        word: a word or several, singular or plural, `word#number`, a WordNet id, or the name of a class.
        labels: the head's.
        concepts: over these labels.

    Raises:
        AmbiguousWordError: several meanings are possible.
        UsageError: no concept and no class has this name, or the head has no class of it.
    """
    if not make_key(word):
        raise UsageError("the concept is empty", "see mf labels")
    column = int(load_hierarchy().find([word.strip().lower()])[0])
    if column >= 0:
        return _make_target(column, concepts, word)
    numbered = _NUMBERED.fullmatch(word)
    meanings = find_meanings(numbered[1] if numbered else word)
    if numbered and meanings:
        if not 1 <= int(numbered[2]) <= len(meanings):
            raise UsageError(f"there is no {word!r}", f"the last is {meanings[-1].choice}")
        return _make_target(meanings[int(numbered[2]) - 1].column, concepts, word)
    known = [meaning for meaning in meanings if len(concepts.members(meaning.column))]
    if known:
        return _make_target(_choose(word, known, concepts).column, concepts, word)
    key = make_key(word)
    if members := [i for i, label in enumerate(labels) if key in map(make_key, (label.name, *label.name.split(",")))]:
        label = labels[members[0]]
        return Target(label.wnid, shorten(label.name), np.array(members))
    raise _not_in_head(meanings[0].column, word) if meanings else _unknown(word, labels)


def _choose(word: str, meanings: Sequence[Meaning], concepts: HeadConcepts) -> Meaning:
    """Return the meaning that has the word as its first name and all classes of the others that do."""
    likely = [meaning for meaning in meanings if meaning.is_first_name] or meanings
    sets = [set(concepts.members(meaning.column).tolist()) for meaning in likely]
    for meaning, members in zip(likely, sets, strict=True):
        if all(members >= others for others in sets):
            return meaning
    raise AmbiguousWordError(word, meanings)


def _make_target(column: int, concepts: HeadConcepts, word: str) -> Target:
    members = concepts.members(column)
    if not len(members):
        raise _not_in_head(column, word)
    return Target(_get_wnid(column), concepts.label(column), members)


def _not_in_head(column: int, word: str) -> UsageError:
    for num_classes, model in _MODELS.items():
        if len(HeadConcepts(load_imagenet_labels(num_classes)).members(column)):
            return UsageError(f"the model has no class of {word!r}", f"one that has: model={model}")
    raise AssertionError(f"column {column} is above no class of ImageNet")  # it would not be in the hierarchy


def _unknown(word: str, labels: Sequence[Label]) -> UsageError:
    all_names = [*_load_all_names(), *(label.name for label in labels)]
    near = find_similar(word, {make_key(name): name for synset in all_names for name in synset.split(", ")}, 3)
    did_you_mean = f"did you mean {' or '.join(near)}? " if near else "concepts have English names. "
    return UsageError(f"no concept and no class is named {word!r}", f"{did_you_mean}The model's: mf labels")


@functools.cache
def _load_extras() -> dict[str, dict[str, str]]:
    extras: dict[str, dict[str, str]] = json.loads(zlib.decompress(MEANINGS_FILE.read_bytes(), wbits=31))
    return extras


@functools.cache
def _load_all_names() -> tuple[str, ...]:
    """Return the names of each synset, joined by commas, by column."""
    classes = load_all_imagenet_labels()
    leaves = np.flatnonzero(load_hierarchy().find([label.wnid for label in classes]) >= len(load_names()))
    return (*load_names(), *(classes[i].name for i in leaves.tolist()))  # both are sorted by id


@functools.cache
def _load_keys() -> tuple[str, ...]:
    """Return the keys of each synset's names, joined by commas, by column."""
    return tuple(map(make_key, _load_all_names()))

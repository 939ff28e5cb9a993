"""List the classes of a model's head with the concepts over them."""

import fnmatch
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mfcli.artifact.ensure import load_labels
from mfcli.errors import ModelError
from mfcli.files import is_glob
from mfcli.models.concepts import HeadConcepts, ancestors, load_hierarchy, shorten
from mfcli.models.meanings import find_meanings
from mfcli.models.registry import Variant, find_variant
from mfcli.results import Label
from mfcli.settings import Settings


@dataclass(frozen=True, slots=True)
class ListedClass:
    """A class of a head, and the concepts that can be named for it, the narrowest first."""

    class_index: int
    label: Label
    concepts: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of the tree of concepts and classes.

    Attributes:
        depth: concepts above it.
        label: its id and first name.
        classes: how many classes are below it, None for a class.
    """

    depth: int
    label: Label
    classes: int | None


def list_classes(variant: Variant, pattern: str | None, settings: Settings) -> tuple[ListedClass, ...]:
    """Return the classes of a model that match, in head order.

    Args:
        variant: the model.
        pattern: a concept, a word of a class's name, a glob over names, or a WordNet id; None for all classes.
        settings: locate the cache.

    Raises:
        ModelError: none matches.
    """
    labels = load_labels(variant, settings)
    concepts = HeadConcepts(labels)
    above = _list_concepts(concepts)
    wanted = range(len(labels)) if pattern is None else sorted(_match(pattern, labels, concepts))
    if not wanted:
        raise ModelError(f"no class of {variant.name} matches {pattern!r}", _suggest(variant, pattern or ""))
    return tuple(
        ListedClass(index, labels[index], tuple(c for c in above[index] if c.wnid != labels[index].wnid))
        for index in wanted
    )


def _suggest(variant: Variant, pattern: str) -> str:
    with suppress(ModelError):
        variant = find_variant(pattern)  # mf info and mf download take the model's name in this place
    return f"all classes of {variant.name}: mf labels model={shlex.quote(variant.name)}"


def _list_concepts(concepts: HeadConcepts) -> dict[int, list[Label]]:
    """Return the concepts that can be named, by class; of two over the same classes, the narrower one."""
    seen = set()
    above = defaultdict(list)
    for column in concepts.columns[concepts.named].tolist():
        members = concepts.members(column)
        if members.tobytes() not in seen:
            concept = Label(load_hierarchy().wnid(column), concepts.label(column))
            for index in members.tolist():
                above[index].append(concept)
        seen.add(members.tobytes())
    return above


def _match(pattern: str, labels: Sequence[Label], concepts: HeadConcepts) -> set[int]:
    if is_glob(pattern):
        glob = re.compile(fnmatch.translate(pattern.casefold()))
        return {i for i, label in enumerate(labels) if any(map(glob.match, label.name.casefold().split(", ")))}
    columns = [*load_hierarchy().find([pattern.strip().lower()]).tolist(), *(m.column for m in find_meanings(pattern))]
    word = re.compile(rf"\b{re.escape(pattern.strip().casefold())}\b")
    named = {i for i, label in enumerate(labels) if word.search(label.name.casefold())}
    return named.union(*(concepts.members(column).tolist() for column in columns))


def make_tree(classes: Sequence[ListedClass]) -> Iterator[Branch]:
    """Yield concepts and classes, each below the narrowest concepts over it; what has two of them comes twice."""
    counts = Counter(concept for listed in classes for concept in listed.concepts)
    above = {concept: {label.wnid for label in ancestors(concept.wnid or "")} for concept in counts}
    below: dict[Label | None, set[Label]] = defaultdict(set)
    for listed in classes:
        own = Label(listed.label.wnid, shorten(listed.label.name))
        for label, over in ((own, listed.concepts), *((c, listed.concepts) for c in listed.concepts)):
            candidates = [c for c in over if label == own or c.wnid in above[label]]
            parents = [c for c in candidates if not any(c.wnid in above[other] for other in candidates)]
            for parent in parents:
                below[parent].add(label)
            if not parents:
                below[None].add(label)
    yield from _walk(None, 0, below, counts)


def _walk(
    parent: Label | None, depth: int, below: Mapping[Label | None, set[Label]], counts: Mapping[Label, int]
) -> Iterator[Branch]:
    for label in sorted(below.get(parent, ()), key=lambda label: label.name.casefold()):
        yield Branch(depth, label, counts.get(label))
        yield from _walk(label, depth + 1, below, counts)

"""From what a dataset calls its classes to the classes of a model's head: WordNet ids, names or indices.

All names of a dataset are of one kind, so that none is taken for an index by chance. A name that means nothing to the
model is refused: it would give wrong figures without a word.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mfcli.errors import UsageError
from mfcli.models.labels import load_all_imagenet_labels, load_imagenet_labels
from mfcli.models.meanings import find_similar, make_key
from mfcli.results import Label

_MAX_NAMED = 5
_Finder = Mapping[str, tuple[int, ...]]
"""Classes of a head by the key of a name; several where a name is ambiguous."""


class Naming(StrEnum):
    """How a dataset names its classes."""

    WNID = "WordNet id"
    NAME = "name"
    INDEX = "index"
    CLASS_MAP = "class map"


@dataclass(frozen=True, slots=True)
class ClassMapping:
    """What a dataset's names of classes mean to a head.

    Attributes:
        naming: what kind of names they are.
        indices: the head's class by name.
        outside: names of other classes of ImageNet, which the head does not have.
    """

    naming: Naming
    indices: Mapping[str, int]
    outside: tuple[str, ...]

    def in_words(self, labels: Sequence[Label]) -> str:
        """Return the mapping as text, of many classes the first ones."""
        shown = [f"{name} = {labels[index].name.split(',')[0]} ({index})" for name, index in self.indices.items()]
        more = f", and {len(shown) - _MAX_NAMED} more" if len(shown) > _MAX_NAMED else ""
        return f"classes by {self.naming}: {', '.join(shown[:_MAX_NAMED])}{more}"


def map_classes(
    names: Iterable[str],
    labels: Sequence[Label],
    class_map: Sequence[Label] | None = None,
    model: str = "the model",
) -> ClassMapping:
    """Find out which classes of a head a dataset is about: by WordNet id, else by name, else by index.

    Args:
        names: what the dataset calls its classes.
        labels: the head's, in its order.
        class_map: the dataset's names in the head's order, instead of the head's own.
        model: what errors call the model.

    Raises:
        UsageError: a name means no class or several, or none is a class of the head.
    """
    names = sorted(set(names))
    if not names:
        return ClassMapping(Naming.NAME, {}, ())
    if class_map is not None and len(class_map) > len(labels):
        raise UsageError(f"the class map has {len(class_map)} classes, the model {len(labels)}", "see mf labels")
    for naming, finder in _list_finders(labels, class_map):
        found = {name: classes for name in names if (classes := finder.get(_key_of(name, naming)))}
        if not found:
            continue
        for name, classes in found.items():
            if len(classes) > 1:
                choices = " or ".join(labels[index].wnid or f"class {index}" for index in classes[:_MAX_NAMED])
                raise UsageError(f"{name!r} is the name of {len(classes)} classes", f"name one: {choices}")
        others = _list_others(naming)
        outside = tuple(name for name in names if name not in found and _key_of(name, naming) in others)
        if unknown := [name for name in names if name not in found and name not in outside]:
            raise _unknown(unknown, labels, f"{len(unknown)} of {len(names)} names are not classes of {model}")
        return ClassMapping(naming, {name: classes[0] for name, classes in found.items()}, outside)
    if set(names) <= _list_others(Naming.WNID):
        raise UsageError(
            f"{model} has none of these {len(names)} classes of ImageNet", "one that may have: model=caformer_s18"
        )
    raise _unknown(names, labels, f"no name is a class of {model}")


def _list_finders(labels: Sequence[Label], class_map: Sequence[Label] | None) -> Iterator[tuple[Naming, _Finder]]:
    if class_map is not None:
        keyed = [{key for key in (label.wnid, label.name) if key} for label in class_map]
        yield Naming.CLASS_MAP, _index(keyed)
        return
    yield Naming.WNID, _index({label.wnid} if label.wnid else set() for label in labels)
    yield Naming.NAME, _index_names(labels)
    digits = max(len(str(len(labels) - 1)), 4)
    forms = ({str(index).zfill(width) for width in range(1, digits + 1)} for index in range(len(labels)))
    yield Naming.INDEX, _index(forms)


def _index(keys: Iterable[Iterable[str]]) -> _Finder:
    found: dict[str, tuple[int, ...]] = {}
    for index, own in enumerate(keys):
        for key in own:
            found[key] = (*found.get(key, ()), index)
    return found


def _index_names(labels: Sequence[Label]) -> _Finder:
    """The whole name and the first of several synonyms win over the other synonyms."""
    main = _index({make_key(label.name), make_key(label.name.split(",")[0])} for label in labels)
    return {**_index(set(map(make_key, label.name.split(","))) for label in labels), **main}


def _key_of(name: str, naming: Naming) -> str:
    return make_key(name) if naming is Naming.NAME else name


def _list_others(naming: Naming) -> frozenset[str]:
    """Return the keys of ImageNet's classes, whatever the head has of them."""
    if naming is Naming.WNID:
        return frozenset(label.wnid for label in load_all_imagenet_labels() if label.wnid)
    if naming is Naming.NAME:
        return frozenset(_index_names(load_imagenet_labels(1000)))
    return frozenset()


def _unknown(names: Sequence[str], labels: Sequence[Label], message: str) -> UsageError:
    known = {make_key(name): name.strip() for label in labels for name in label.name.split(",")}
    near = [f"{name}: did you mean {' or '.join(found)}?" for name in names if (found := find_similar(name, known, 2))]
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
    hint = (
        "classes are named by WordNet id, name or index: mf labels; or give class_map=FILE; "
        "or name a model of yours: model=FOLDER"
    )
    return UsageError(f"{message}: {shown}", "; ".join([*near[:_MAX_NAMED], hint]))

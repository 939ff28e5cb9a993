"""From a dataset's names of classes to those of a head: the order of trying, and everything that is refused."""

import hashlib
import json

import pytest

from mfcli.errors import UsageError
from mfcli.models.class_names import ClassMapping, Naming, map_classes
from mfcli.models.labels import load_imagenet_labels
from mfcli.results import Label

IN1K = load_imagenet_labels(1000)
SMALL = (Label("n01440764", "tench, Tinca tinca"), Label("n02979186", "cassette player"), Label(None, "7"))


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["n01440764", "n02979186"], IN1K, ClassMapping(Naming.WNID, {"n01440764": 0, "n02979186": 482}, ())),
        (["Tench", "cassette_player"], IN1K, ClassMapping(Naming.NAME, {"Tench": 0, "cassette_player": 482}, ())),
        (["tinca tinca"], SMALL, ClassMapping(Naming.NAME, {"tinca tinca": 0}, ())),
        (["0", "482"], IN1K, ClassMapping(Naming.INDEX, {"0": 0, "482": 482}, ())),
        (["0000", "0482"], IN1K, ClassMapping(Naming.INDEX, {"0000": 0, "0482": 482}, ())),
        (["7"], SMALL, ClassMapping(Naming.NAME, {"7": 2}, ())),  # a name wins over an index
        (["n01440764", "n02088238"], SMALL, ClassMapping(Naming.WNID, {"n01440764": 0}, ("n02088238",))),
        (["tench", "basset"], SMALL, ClassMapping(Naming.NAME, {"tench": 0}, ("basset",))),
    ],
)
def test_names_of_one_kind(names: list[str], labels: tuple[Label, ...], expected: ClassMapping) -> None:
    assert map_classes(names, labels) == expected


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["n01440764", "fish"], "1 of 2 names are not classes of the model: 'fish'", "class_map=FILE"),
        (["tensh", "cassette player"], "1 of 2 names are not classes of the model: 'tensh'", "did you mean tench?"),
        (["tench", "0"], "1 of 2 names are not classes of the model: '0'", "mf labels"),
        (["0", "1000"], "1 of 2 names are not classes of the model: '1000'", "mf labels"),
        (["cracked", "fine"], "no name is a class of the model: 'cracked', 'fine'", "mf labels"),
        (["maillot"], "'maillot' is the name of 2 classes", "n03710637 or n03710721"),
    ],
)
def test_what_is_no_class_is_refused(names: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        map_classes(names, IN1K)
    assert (caught.value.message, hint in (caught.value.hint or "")) == (message, True)


def test_a_class_map_replaces_the_heads_own_names() -> None:
    class_map = (Label(None, "fish"), Label(None, "radio"))
    assert map_classes(["radio", "fish"], SMALL, class_map).indices == {"fish": 0, "radio": 1}
    with pytest.raises(UsageError, match="no name is a class of the model: 'tench'"):
        map_classes(["tench"], SMALL, class_map)
    with pytest.raises(UsageError, match="the class map has 4 classes, the model 3"):
        map_classes(["a"], SMALL, (*SMALL, SMALL[0]))


def test_the_classes_of_imagenet_1k_in_the_full_imagenet_are_those_of_the_papers_code() -> None:
    """The digest is that of both lists in misc/in21k_to_1k_class_map.json of https://github.com/sail-sg/metaformer."""
    mapping = map_classes([label.wnid or "" for label in IN1K], load_imagenet_labels(21841))
    assert (len(mapping.indices), mapping.outside) == (999, ("n04399382",))
    kept = [index for index, label in enumerate(IN1K) if label.wnid in mapping.indices]
    pairs = [kept, [mapping.indices[IN1K[index].wnid or ""] for index in kept]]
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    assert digest == "7615fb38c5f2e9839c5511f6c8ed7b0ccd690112e8dbc15b71937b87a918e0b6"

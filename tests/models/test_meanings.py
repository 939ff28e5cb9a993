"""Words to concepts: spellings, plurals, ambiguity, and words that the model or WordNet does not know."""

import pytest

from mfcli.errors import UsageError
from mfcli.models.concepts import HeadConcepts
from mfcli.models.labels import load_imagenet_labels
from mfcli.models.meanings import AmbiguousWordError, Target, find_meanings, resolve
from mfcli.results import Label

IN1K = load_imagenet_labels(1000)
CONCEPTS = HeadConcepts(IN1K)


def look_up(word: str) -> Target:
    return resolve(word, IN1K, CONCEPTS)


@pytest.mark.parametrize(
    ("words", "wnid", "classes"),
    [
        (["dog", "Dogs", "DOG", "domestic dog", "dog#1", " n02084071 ", "N02084071"], "n02084071", 118),
        (["sports car", "Sports-Cars", "sports_car", "sportscar", "sport car"], "n04285008", 1),
        (["wolf", "wolves"], "n02114100", 4),
        (["mouse", "mice", "computer mouse"], "n03793489", 1),  # the other mouse is not among the 1,000
        (["butterflies", "butterfly"], "n02274259", 6),
        (["crane#2"], "n03126707", 1),
        (["Tabby Cat", "tabby"], "n02123045", 1),
        (["buses", "bus"], "n02924116", 3),
    ],
)
def test_words(words: list[str], wnid: str, classes: int) -> None:
    assert {(look_up(word).wnid, len(look_up(word).members)) for word in words} == {(wnid, classes)}


def test_an_ambiguous_word_lists_its_meanings() -> None:
    with pytest.raises(AmbiguousWordError) as caught:
        look_up("cranes")
    assert caught.value.message == "'cranes' has 2 meanings"
    assert caught.value.hint == "name one: crane#1 or crane#2, or its WordNet id"
    assert [(m.choice, m.wnid, m.names, m.gloss) for m in caught.value.meanings] == [
        (
            "crane#1",
            "n02012849",
            "crane",
            "large long-necked wading bird of marshes and plains in many parts of the world",
        ),
        ("crane#2", "n03126707", "crane", "lifts and moves heavy objects"),
    ]


def test_numbers_do_not_depend_on_the_model() -> None:
    assert [(m.choice, m.wnid) for m in find_meanings("bat")] == [
        ("bat#1", "n02139199"),
        ("bat#2", "n02806379"),
        ("bat#3", "n03132076"),
        ("bat#4", "n04292414"),
    ]
    labels = load_imagenet_labels(21841)
    assert resolve("bat#3", labels, HeadConcepts(labels)).label == "cricket bat"


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("gren snake", "no concept and no class is named 'gren snake'", "did you mean green snake or"),
        ("Katze", "no concept and no class is named 'Katze'", "mf labels"),
        ("猫", "no concept and no class is named '猫'", "concepts have English names. The model's: mf labels"),
        ("n99999999", "no concept and no class is named 'n99999999'", "mf labels"),
        ("dog#1#2", "no concept and no class is named 'dog#1#2'", "mf labels"),
        ("--all", "no concept and no class is named '--all'", "mf labels"),
        ("crane#3", "there is no 'crane#3'", "the last is crane#2"),
        ("crane#0", "there is no 'crane#0'", "the last is crane#2"),
        ("", "the concept is empty", "see mf labels"),
        (" - ", "the concept is empty", "see mf labels"),
        ("bat", "the model has no class of 'bat'", "one that has: model=caformer_s18_in21k"),
        ("n02139199", "the model has no class of 'n02139199'", "one that has: model=caformer_s18_in21k"),
        ("mouse#1", "the model has no class of 'mouse#1'", "one that has: model=caformer_s18_in21k"),
    ],
)
def test_what_cannot_be_looked_for(word: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        look_up(word)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


def test_a_model_that_has_the_class_is_named() -> None:
    labels = IN1K[:3]
    with pytest.raises(UsageError) as caught:
        resolve("dog", labels, HeadConcepts(labels))
    assert caught.value.hint == "one that has: model=caformer_s18"


def test_the_names_of_a_users_own_classes() -> None:
    labels = (
        Label(None, "dent, large"),
        Label("n02123045", "Hauskatze"),
        Label(None, "dent, small"),
        Label(None, "dog"),
    )
    concepts = HeadConcepts(labels)
    found = {word: resolve(word, labels, concepts).members.tolist() for word in ("dent", "hauskatze", "cat", "dog")}
    assert found == {"dent": [0, 2], "hauskatze": [1], "cat": [1], "dog": [3]}

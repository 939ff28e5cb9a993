"""Concepts over classes: WordNet's graph, the sums of a distribution, and which concept is named."""

import subprocess
import sys

import numpy as np
import pytest

from mfcli.errors import UsageError
from mfcli.models.concepts import HIERARCHY_FILE, NAMES_FILE, HeadConcepts, ancestors, load_hierarchy, load_names
from mfcli.models.labels import load_imagenet_labels
from mfcli.models.meanings import MEANINGS_FILE
from mfcli.results import Concept, Label

TABBY, SIAMESE, COUGAR, GOLDFISH, BASSET = "n02123045", "n02123597", "n02125311", "n01443537", "n02088238"
PIZZA, TEAPOT, DAISY = "n07873807", "n04398044", "n11939491"
IDS = (GOLDFISH, BASSET, TABBY, SIAMESE, COUGAR, TEAPOT, PIZZA, DAISY)
HEAD = tuple(Label(wnid, f"class {i}") for i, wnid in enumerate(IDS))


def name(probs: dict[str, float], confidence: float = 0.8, labels: tuple[Label, ...] = HEAD) -> Concept | None:
    row = np.array([probs.get(label.wnid or "", 0.0) for label in labels])
    return HeadConcepts(labels).name(row, confidence)


def test_ancestors_are_wordnets_the_narrowest_first() -> None:
    names = [label.name.split(",")[0] for label in ancestors(TABBY)]
    assert names[:2] == ["domestic cat", "cat"]
    assert names[-1] == "entity"
    assert {"feline", "domestic animal", "animal"} < set(names)  # two ways up
    assert Label("n02084071", "dog, domestic dog, Canis familiaris") in ancestors(BASSET)
    assert ancestors("n00001740") == ()


@pytest.mark.parametrize("wnid", ["n99999999", "n00001", "tabby", "", "n0212304５", "v02123045"])
def test_what_is_no_synset_over_imagenet_has_no_ancestors(wnid: str) -> None:
    with pytest.raises(UsageError, match="not at or above"):
        ancestors(wnid)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ({TABBY: 0.9, COUGAR: 0.1}, (TABBY, "class 2", 0.9, 1)),
        ({TABBY: 0.5, SIAMESE: 0.4, TEAPOT: 0.1}, ("n02121808", "domestic cat", 0.9, 2)),
        ({TABBY: 0.5, COUGAR: 0.5}, ("n02121620", "cat", 1.0, 3)),
        ({TABBY: 0.45, BASSET: 0.45, PIZZA: 0.1}, ("n01317541", "domestic animal", 0.9, 3)),
        ({COUGAR: 0.5, BASSET: 0.5}, ("n02075296", "carnivore", 1.0, 4)),
    ],
)
def test_the_smallest_concept_that_holds_the_probability(
    probs: dict[str, float], expected: tuple[str, str, float, int]
) -> None:
    found = name(probs)
    assert found is not None
    assert (found.wnid, found.label, round(found.prob, 9), found.classes) == expected


@pytest.mark.parametrize(
    "probs",
    [
        {GOLDFISH: 0.5, BASSET: 0.5},  # vertebrate and animal, over more than half of the head's classes
        {TEAPOT: 0.5, PIZZA: 0.5},  # whole
        {DAISY: 0.5, BASSET: 0.5},  # organism
        {TABBY: 0.79, TEAPOT: 0.21},
    ],
)
def test_nothing_is_named_where_nothing_says_enough(probs: dict[str, float]) -> None:
    assert name(probs) is None


def test_the_confidence_is_reached_by_equality() -> None:
    assert name({TABBY: 0.5, SIAMESE: 0.25, TEAPOT: 0.25}, 0.75) == Concept("n02121808", "domestic cat", 0.75, 2)
    assert name({TABBY: 0.5, SIAMESE: 0.25, TEAPOT: 0.25}, 0.7501) is None


def test_a_rare_word_gives_way_to_an_everyday_one() -> None:
    labels = tuple(Label(wnid, wnid) for wnid in ("n02129165", "n02504458", *IDS[5:], GOLDFISH))  # lion, elephant
    assert "n01886756" in {label.wnid for label in ancestors("n02129165")}  # placental
    assert name({"n02129165": 0.5, "n02504458": 0.5}, labels=labels) == Concept("n01861778", "mammal", 1.0, 2)


def test_nothing_too_wide_or_high_is_telling() -> None:
    hierarchy = load_hierarchy()
    telling = {wnid for i, wnid in enumerate(map(hierarchy.wnid, range(len(load_names())))) if hierarchy.is_telling[i]}
    too_wide = {"n00001740", "n00002684", "n00003553", "n00021939", "n00004475", "n03575240"}  # ... instrumentality
    assert not telling & (too_wide | {"n00020827", "n00020090", "n01886756"})  # matter, substance, placental
    assert not telling & {"n09831962", "n09636106"}  # kinds of people
    assert {"n00015388", "n00017222", "n00007846", "n00021265"} < telling  # animal, plant, person, food


def test_sums_are_those_over_the_graph() -> None:
    labels = load_imagenet_labels(1000)
    concepts = HeadConcepts(labels)
    above = [{label.wnid, *(a.wnid for a in ancestors(label.wnid or ""))} for label in labels]
    carnivores = concepts.members(int(load_hierarchy().find(["n02075296"])[0]))
    probs = np.full(1000, 1e-4)
    probs[carnivores] = np.random.default_rng(0).dirichlet(np.full(len(carnivores), 0.1))
    probs /= probs.sum()
    for place, column in enumerate(concepts.columns.tolist()):
        wnid = load_hierarchy().wnid(column)
        members = [i for i in range(1000) if wnid in above[i]]
        assert concepts.members(column).tolist() == members
        assert concepts.sizes[place] == len(members)
    found = concepts.name(probs, 0.8)
    assert found is not None
    assert found.prob == pytest.approx(sum(p for p, wnids in zip(probs, above, strict=True) if found.wnid in wnids))
    assert 1 < found.classes < 200
    smaller = concepts.columns[concepts.named][concepts.sizes[concepts.named] < found.classes]
    assert all(probs[concepts.members(column)].sum() < 0.8 for column in smaller.tolist())


def test_a_class_above_others_counts_itself_and_them() -> None:
    labels = load_imagenet_labels(21841)
    concepts = HeadConcepts(labels)
    dog = int(load_hierarchy().find(["n02084071"])[0])
    assert len(concepts.members(dog)) == 190
    probs = np.zeros(len(labels))
    probs[[label.wnid for label in labels].index("n02084071")] = 0.85
    assert concepts.name(probs, 0.8) == Concept("n02084071", "dog", 0.85, 190)


def test_labels_without_ids_have_no_concepts() -> None:
    labels = (Label(None, "cat"), Label(None, "dog"), Label("n99999999", "other"))
    assert HeadConcepts(labels).name(np.array([1.0, 0.0, 0.0]), 0.5) is None
    some = (*labels, Label(TABBY, "mine"))
    assert HeadConcepts(some).name(np.array([1.0, 0.0, 0.0, 0.0]), 0.5) is None
    assert HeadConcepts(some).name(np.array([0.0, 0.0, 0.0, 1.0]), 0.5) == Concept(TABBY, "mine", 1.0, 1)


def test_two_classes_of_one_synset_count_together() -> None:
    labels = (Label(TABBY, "brown"), Label(TABBY, "grey"), Label(TEAPOT, "teapot"), Label(PIZZA, "pizza"))
    found = HeadConcepts(labels).name(np.array([0.5, 0.4, 0.1, 0.0]), 0.8)
    assert found == Concept(TABBY, "grey", 0.9, 2)


def test_the_data_are_small() -> None:
    assert sum(path.stat().st_size for path in (HIERARCHY_FILE, NAMES_FILE, MEANINGS_FILE)) <= 400_000


def test_numpys_slow_modules_are_not_imported() -> None:
    program = (
        "import sys; from mfcli.models.concepts import HeadConcepts; from mfcli.results import Label\n"
        f"HeadConcepts([Label('{TABBY}', 'a'), Label('{BASSET}', 'b')]).name(__import__('numpy').ones(2) / 2, 0.8)\n"
        "print([name for name in ('numpy.ma', 'gzip', 'zipfile', 'json') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

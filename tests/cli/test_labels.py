"""The command mf labels: which classes match, and the concepts over them in every format."""

import csv
import io
import json
from collections.abc import Callable

import pytest

from conftest import Ran
from mfcli.models.labels import load_imagenet_labels

Mf = Callable[..., Ran]


def list_names(mf: Mf, *arguments: str) -> list[str]:
    return [
        json.loads(line)["label"].split(",")[0]
        for line in mf("labels", *arguments, "--format", "jsonl").out.splitlines()
    ]


def test_all_classes_in_head_order(mf: Mf) -> None:
    rows = [json.loads(line) for line in mf("labels", "-m", "caformer_s18", "--format", "jsonl").out.splitlines()]
    labels = load_imagenet_labels(1000)
    assert [(row["class_index"], row["wnid"], row["label"]) for row in rows] == [
        (index, label.wnid, label.name) for index, label in enumerate(labels)
    ]
    assert rows[281]["concepts"][:3] == ["domestic cat", "cat", "feline"]
    assert len(mf("labels", "--format", "jsonl").out.splitlines()) == 200


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("domestic cat", ["tabby", "Persian cat", "Egyptian cat"]),  # a concept
        ("Domestic-Cats", ["tabby", "Persian cat", "Egyptian cat"]),
        ("n02121808", ["tabby", "Persian cat", "Egyptian cat"]),
        ("panther", ["cougar"]),  # a name
        ("golden", ["golden retriever"]),  # a word of a name
        ("*retriever", ["golden retriever", "Labrador retriever"]),
        ("gold", []),
        ("猫", []),
    ],
)
def test_patterns(mf: Mf, pattern: str, names: list[str]) -> None:
    if names:
        assert list_names(mf, pattern) == names
    else:
        ran = mf("labels", pattern)
        assert (ran.code, ran.out) == (4, "")
        assert f"no class of convformer_t8_64 matches {pattern!r}" in ran.err


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        (["gold"], "convformer_t8_64"),
        (["CAFormer_s18"], "caformer_s18"),
        (["x", "-m", "poolformer_s12"], "poolformer_s12"),
    ],
)
def test_the_hint_names_the_model_that_is_meant(mf: Mf, arguments: list[str], model: str) -> None:
    assert mf("labels", *arguments).err.endswith(f"\nhint: all classes of {model}: mf labels --model {model}\n")


def test_the_tree(mf: Mf) -> None:
    assert mf("labels", "retriever", "--tree").out.splitlines() == [
        "animal (2)  n00015388",
        "  domestic animal (2)  n01317541",
        "    dog (2)  n02084071",
        "      hunting dog (2)  n02087122",
        "        retriever (2)  n02099029",
        "          golden retriever  n02099601",
        "          Labrador retriever  n02099712",
        "  vertebrate (2)  n01471682",
        "    mammal (2)  n01861778",
        "      carnivore (2)  n02075296",
        "        dog (2)  n02084071",
        "          hunting dog (2)  n02087122",
        "            retriever (2)  n02099029",
        "              golden retriever  n02099601",
        "              Labrador retriever  n02099712",
    ]


def test_tables_have_short_names(mf: Mf) -> None:
    header, row = mf("labels", "cougar").out.splitlines()
    assert header.split() == ["class_index", "wnid", "label", "concepts"]
    assert row.split(maxsplit=3) == ["33", "n02125311", "cougar", "cat, feline, carnivore, mammal, vertebrate, animal"]
    (cells,) = csv.DictReader(io.StringIO(mf("labels", "cougar", "--format", "csv").out))
    assert cells["label"].startswith("cougar, puma, ")
    assert cells["concepts"] == "cat, feline, carnivore, mammal, vertebrate, animal"


def test_a_tree_is_text(mf: Mf) -> None:
    ran = mf("labels", "--tree", "--format", "json")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: --tree is text, not json")

"""Label files: read in the right order in every common shape, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mfcli.errors import UsageError
from mfcli.models.label_files import make_labels, read_labels
from mfcli.results import Label


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", [(None, "cat"), (None, "dog")]),
        ("\ufeffcat, tabby\r\ndog\r\n\r\n", [(None, "cat, tabby"), (None, "dog")]),
        ("wnid,name\nn1,cat\n\n,dog\n", [("n1", "cat"), (None, "dog")]),
        ("a\u2028b\nc\x0cd\n", [(None, "a\u2028b"), (None, "c\x0cd")]),
        ('name,wnid\n"cat, tabby",n1\n', [("n1", "cat, tabby")]),
        ("name\n", None),
        ("name\ncat\n", [(None, "cat")]),
        ("name\n1 euro\n2 euro\n", [(None, "1 euro"), (None, "2 euro")]),
        ("3 wheeler\ncar\n", [(None, "3 wheeler"), (None, "car")]),
        ("class_index,name\n1,dog\n0,cat\n", [(None, "cat"), (None, "dog")]),
        ("id,name\n1,dog\n0,cat\n", [(None, "cat"), (None, "dog")]),
        ("label,index\ndog,1\ncat,0\n", [(None, "cat"), (None, "dog")]),
        ("Index,Label\n1,dog\n0,cat\n", [(None, "cat"), (None, "dog")]),
        ("wnid,class_index,name\nn2,1,dog\nn1,0,cat\n", [("n1", "cat"), ("n2", "dog")]),
        ("id,name\nn02123045,cat\nn02084071,dog\n", [("n02123045", "cat"), ("n02084071", "dog")]),
        ("1,dog\n0,cat, tabby\n", [(None, "cat, tabby"), (None, "dog")]),
        ("1 dog\n0 cat\n", [(None, "cat"), (None, "dog")]),
        ("1\tdog\n0\tcat\n", [(None, "cat"), (None, "dog")]),
        ("0: cat\n1: dog\n", [(None, "cat"), (None, "dog")]),
        ("id\tname\n1\tdog\n0\tcat, tabby\n", [(None, "cat, tabby"), (None, "dog")]),
        ("name;id\ndog;1\ncat;0\n", [(None, "cat"), (None, "dog")]),
        ("label\ncat\n", [(None, "label"), (None, "cat")]),
        ("[none]\ncat\n", [(None, "[none]"), (None, "cat")]),
        ("n02123045 tabby\nn02123394 Persian cat\n", [("n02123045", "tabby"), ("n02123394", "Persian cat")]),
        ("wnid\nn02165456\n", [("n02165456", "ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle")]),
        ("wnid,index\nn02165456,0\n", [("n02165456", "ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle")]),
        ("n02165456\n", [("n02165456", "ladybug, ladybeetle, lady beetle, ladybird, ladybird beetle")]),
        ("n02165456\nn99999999\n", [(None, "n02165456"), (None, "n99999999")]),
        ("chat\u00e9\n", [(None, "chat\u00e9")]),
    ],
)
def test_label_files(text: str, labels: list[tuple[str | None, str]] | None, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8", newline="")
    if labels is None:
        with pytest.raises(UsageError):
            read_labels(path)
    else:
        assert read_labels(path) == tuple(Label(*label) for label in labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "contains no names"),
        (b"\n\n", "contains no names"),
        (b"[]", "is JSON without class names"),
        (b"{}", "is JSON without class names"),
        (b'{"a": "b"}', "is JSON without class names"),
        (b'{"0": 0, "1": 1}', "is JSON without class names"),
        (b'{"0": "a", "2": "b"}', "not 0 to 1, 1 is missing"),
        (b'{"a": 0, "b": 0}', "the class index 0 is there twice"),
        (b"[1, 2]", "is JSON without class names"),
        (b'{"id2label": null}', "is JSON without class names"),
        (b'{"label_names": "cat"}', "is JSON without class names"),
        (b"class_index,name\n1,a\n2,b\n", "not 0 to 1, 0 is missing"),
        (b"class_index,name\n0,a\n0,b\n", "the class index 0 is there twice"),
        (b'{"0": "a", "0": "b", "1": "c"}', "'0' is there twice"),
        (b"class_index,name\n0,a\nx,b\n", "'x' is not a class index"),
        (b"1 euro\n2 euro\n", "not 0 to 1, 0 is missing"),
        (b"0,a\n2,b\n", "not 0 to 1, 1 is missing"),
        (b"cat\n\ndog\n", "the name of class 1 is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"wnid,name\nn1\n", "1 columns instead of 2 in 'n1'"),
        (b"wnid,name\nn1,tabby, tabby cat\n", "3 columns instead of 2"),
        (b"wnid,name\nn1," + b"x" * 200_000, "is not UTF-8 text"),
    ],
)
def test_malformed_label_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("labels.txt", "1,cat\n2,dog\n", "indices begin at 0; if the numbers belong to the names"),
        ("labels.csv", "id,name\n1,cat\n2,dog\n", "indices begin at 0$"),
        ("labels.json", '{"1": "cat", "2": "dog"}', "indices begin at 0$"),
    ],
)
def test_the_hint_about_indices_fits_the_file(name: str, text: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"not 0 to 1, 0 is missing\nhint: {hint}"):
        read_labels(tmp_path / name)


def test_the_suffix_tells_what_the_content_does_not(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label\ncat\n")
    assert read_labels(tmp_path / "x.csv") == (Label(None, "cat"),)
    (tmp_path / "x.json").write_text('{"0": "cat"')
    with pytest.raises(UsageError, match="is not JSON: Expecting ',' delimiter: line 1 column 12"):
        read_labels(tmp_path / "x.json")


def test_a_missing_label_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read labels from .*: No such file"):
        read_labels(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "value",
    [
        ["cat", "dog"],
        {"1": "dog", "0": "cat"},
        {"dog": 1, "cat": 0},
        {"id2label": {"1": "dog", "0": "cat"}, "num_labels": 2},
        {"label_names": ["cat", "dog"], "architecture": "caformer_s18"},
        {"pretrained_cfg": {"label_names": ["cat", "dog"]}},
    ],
    ids=str,
)
def test_json_files(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(value, indent=1))
    assert read_labels(path) == (Label(None, "cat"), Label(None, "dog"))


def test_json_files_with_wordnet_ids(tmp_path: Path) -> None:
    expected = (Label("n02123045", "tabby"), Label("n02084071", "dog"))
    for value in (
        {"0": ["n02123045", "tabby"], "1": ["n02084071", "dog"]},
        {"label_names": ["n02123045", "n02084071"], "label_descriptions": {"n02123045": "tabby", "n02084071": "dog"}},
    ):
        (tmp_path / "x.json").write_text(json.dumps(value))
        assert read_labels(tmp_path / "x.json") == expected


def test_labels_are_names_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    expected = (Label(None, "cat"), Label(None, "dog"))
    for labels in (["cat", "dog"], ("cat", Label(None, "dog")), iter(["cat", "dog"]), tmp_path / "labels.txt"):
        assert make_labels(labels) == expected
    assert make_labels(str(tmp_path / "labels.txt")) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"cat": 0}, "labels is of type dict instead of the path of a file, or a list of names"),
        ({"cat"}, "labels is of type set instead"),
        (7, "labels is of type int instead"),
        (["cat", 1], r"labels\[1\] is of type int instead of str or Label"),
    ],
)
def test_other_labels_say_so(labels: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_labels(labels)

"""Class labels: ImageNet's, numbered ones, and the user's files."""

from pathlib import Path

import pytest

from mfcli.errors import ModelError, UsageError
from mfcli.models.labels import load_imagenet_labels, look_up_wnids, make_numbered_labels, read_labels
from mfcli.results import Label


def test_imagenet_lists() -> None:
    small, full = load_imagenet_labels(1000), load_imagenet_labels(21841)
    assert (len(small), len(full)) == (1000, 21841)
    assert small[281] == Label("n02123045", "tabby, tabby cat")
    assert full[0] == Label("n00004475", "organism, being")
    assert len({label.wnid for label in full}) == 21841
    assert all(label.wnid and label.name for label in full)
    with pytest.raises(ModelError):
        load_imagenet_labels(7)


def test_the_names_are_timms() -> None:
    from timm.data import ImageNetInfo

    for num_classes, name in ((1000, "imagenet-1k"), (21841, "imagenet-22k")):
        info = ImageNetInfo(name)
        expected = [(wnid, info.label_name_to_description(wnid)) for wnid in info.label_names()]
        assert [(label.wnid, label.name) for label in load_imagenet_labels(num_classes)] == expected


def test_wnids_keep_their_order() -> None:
    assert look_up_wnids(["n02123045", "n01443537"]) == (
        Label("n02123045", "tabby, tabby cat"),
        Label("n01443537", "goldfish, Carassius auratus"),
    )


def test_numbered_labels() -> None:
    assert make_numbered_labels(2) == (Label(None, "class_0"), Label(None, "class_1"))


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
        (b"", "contains an empty name, or none at all"),
        (b'{\n "0": "cat",\n "1": "dog"\n}\n', "is JSON"),
        (b'["cat",\n"dog"]', "is JSON"),
        (b"cat\n\ndog\n", "contains an empty name, or none at all"),
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


def test_a_missing_label_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read labels from .*: No such file"):
        read_labels(tmp_path / "none.txt")

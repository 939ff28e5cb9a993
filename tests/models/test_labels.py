"""Class labels: ImageNet's and numbered ones."""

import pytest

from mfcli.errors import ModelError
from mfcli.models.labels import load_imagenet_labels, look_up_wnids, make_numbered_labels
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

"""The data of mfcli.models are what scripts/model_data.py makes from timm."""

import gzip

from model_data import format_classes

from mfcli.models.labels import IMAGENET_FILE


def test_the_classes_are_timms() -> None:
    assert gzip.decompress(IMAGENET_FILE.read_bytes()).decode() == format_classes()

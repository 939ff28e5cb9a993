"""The pictures of a fine-tuning are decoded as those of a prediction are, once while there is memory, or left out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colours import write_picture
from mfcli.errors import UsageError
from mfcli.inputs.source import Source
from mfcli.models.preprocess import PreprocessPlan
from mfcli.training.decoding import DecodedPictures

PLAN = PreprocessPlan(36, (32, 32), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Read = Callable[[], list[list[int]]]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    paths = [write_picture(tmp_path / f"{colour}.png", colour, 0) for colour in ("red", "green", "blue")]
    return [Source(str(path)) for path in paths]


@pytest.fixture
def pictures(sources: list[Source], notes: list[str]) -> DecodedPictures:
    held_out = np.array([False, False, True])
    return DecodedPictures(sources, held_out, PLAN, 20, lambda news: notes.append(str(news)))


def read(pictures: DecodedPictures) -> list[list[int]]:
    """Return which pictures each batch has in one pass."""
    pictures.request(0, [np.array([0, 1]), np.array([2])])
    return [[index for _, index, _ in lessons] for lessons in pictures]


def test_pictures_are_decoded_in_another_process(pictures: DecodedPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.inference.loading.decode", None)  # in this one
    assert read(pictures) == [[0, 1], [2]]


def test_pictures_to_learn_from_are_scaled_down(tmp_path: Path, pictures: DecodedPictures) -> None:
    Image.new("RGB", (400, 200)).save(tmp_path / "red.png")
    pictures.request(7, [np.array([0, 2])])
    ((first, held_out),) = pictures
    assert first[:2] == (7, 0)
    assert isinstance(first[2], Image.Image)
    assert first[2].size == (96, 48)
    assert isinstance(held_out[2], np.ndarray)
    assert held_out[2].shape == (3, 32, 32)


def test_what_cannot_be_read_is_left_out_for_good(
    sources: list[Source], pictures: DecodedPictures, notes: list[str]
) -> None:
    path = Path(sources[0].argument)
    path.rename(path.with_suffix(".gone"))
    assert read(pictures) == [[1], [2]]
    path.with_suffix(".gone").rename(path)
    assert read(pictures) == [[1], [2]]
    assert notes == [f"1 picture can no longer be read and is left out: {path}"]


@pytest.mark.parametrize(("available", "again"), [(None, [[0, 1], [2]]), (4 * 3 * 32 * 32 * 4, [[2]])])
def test_pictures_are_kept_while_there_is_room(
    available: int | None,
    again: list[list[int]],
    sources: list[Source],
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mfcli.training.decoding.available_bytes", lambda: available)
    pictures = DecodedPictures(sources, np.array([False, False, True]), PLAN, 20, lambda news: notes.append(str(news)))
    assert read(pictures) == [[0, 1], [2]]
    for source in sources:
        Path(source.argument).unlink()
    assert read(pictures) == again


def test_when_nothing_can_be_read_any_more(sources: list[Source], pictures: DecodedPictures) -> None:
    for source in sources:
        Path(source.argument).unlink()
    with pytest.raises(UsageError, match="the pictures can no longer be read"):
        read(pictures)

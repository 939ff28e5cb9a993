"""Divisions by content: stable, stratified, and duplicates on one side."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mfcli.models.splits import divide, group_duplicates, hash_pictures
from mfcli.synthetic import make_picture


def pixels_of(*pictures: Image.Image) -> NDArray[np.float32]:
    return np.stack([np.asarray(p.resize((64, 64)), np.float32).transpose(2, 0, 1) / 255 for p in pictures])


def digests_of(count: int) -> list[bytes]:
    return [number.to_bytes(2) * 16 for number in range(count)]


def test_near_duplicates_are_grouped_and_others_are_not() -> None:
    pictures = [make_picture(seed) for seed in range(12)]
    small = pictures[3].resize((200, 150))
    bright = Image.fromarray((np.asarray(pictures[5]) * 0.9 + 20).astype(np.uint8))
    pixels = pixels_of(*pictures, small, bright)
    features = pixels.reshape(len(pixels), -1)
    digests = digests_of(14)
    digests[1] = digests[0]
    groups = group_duplicates(digests, hash_pictures(pixels), features)
    assert groups.tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 3, 5]


def test_a_crowd_of_equal_hashes_is_told_apart_by_features() -> None:
    features = np.eye(300, dtype=np.float32)
    groups = group_duplicates(digests_of(300), np.zeros(300, np.uint64), features)
    assert groups.tolist() == list(range(300))


@pytest.mark.parametrize(("count", "parts"), [(10, [2, 2, 2, 2, 2]), (7, [2, 2, 1, 1, 1]), (3, [1, 1, 1, 0, 0])])
def test_each_class_is_divided_evenly(count: int, parts: list[int]) -> None:
    targets = np.repeat([0, 1], count)
    part = divide(digests_of(2 * count), np.arange(2 * count), targets, 5, "seed")
    assert np.bincount(part[:count], minlength=5).tolist() == np.bincount(part[count:], minlength=5).tolist() == parts


def test_the_division_follows_the_content_and_the_seed() -> None:
    digests, targets, groups = digests_of(50), np.zeros(50, np.intp), np.arange(50)
    part = divide(digests, groups, targets, 5, "a")
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(divide([digests[at] for at in order], groups, targets, 5, "a"), part[order])
    assert not np.array_equal(divide(digests, groups, targets, 5, "b"), part)


def test_a_group_is_never_divided() -> None:
    groups = np.arange(60) // 3
    part = divide(digests_of(60), groups, np.repeat([0, 1], 30), 5, "seed")
    assert all(len(set(part[groups == group])) == 1 for group in groups)
    assert np.bincount(part, minlength=5).tolist() == [12] * 5

"""Dividing pictures into parts by their content: the same pictures fall into the same parts, wherever they lie.

Exact and near duplicates stay in one part; otherwise a model would be judged by pictures that it has learned.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 3
"""Bits of two difference hashes of 64 that may differ between near duplicates."""
MIN_COSINE = 0.95
"""The least cosine between their features, each less the mean of all."""
_BANDS = 4  # of 16 bits: two hashes that differ in at most 3 bits share one of them
_NEIGHBOURS = 64
"""Hashes in a band, in their order, that one is compared with."""


def hash_pictures(pixels: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the difference hash of pictures: which of 8 x 9 mean brightnesses are below their right neighbours.

    Args:
        pixels: float32 (N, 3, H, W), H and W at least 9.
    """
    grey = pixels.mean(1, dtype=np.float64)
    rows, columns = (
        np.linspace(0, side, parts + 1).astype(int) for side, parts in zip(grey.shape[1:], (8, 9), strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 1), columns[:-1], 2)
    means = sums / np.diff(rows)[:, np.newaxis] / np.diff(columns)
    bits = (means[:, :, :-1] < means[:, :, 1:]).reshape(len(pixels), 64)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def group_duplicates(
    digests: Sequence[bytes], hashes: NDArray[np.uint64], features: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return a group for each picture, (N,): the index of its first exact or near duplicate, directly or in a chain.

    Args:
        digests: of the files.
        hashes: difference hashes, uint64 (N,).
        features: float32 (N, dim), which tell pictures apart whose hashes are alike by chance.
    """
    parents = np.arange(len(digests))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    def join(a: int, b: int) -> None:
        a, b = find(a), find(b)
        parents[max(a, b)] = min(a, b)

    first: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        join(index, first.setdefault(digest, index))
    centred = features - features.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    for a, b in _list_close(hashes):
        if centred[a] @ centred[b] >= MIN_COSINE:
            join(a, b)
    return np.array([find(index) for index in range(len(digests))], np.intp)


def _list_close(hashes: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """Return pairs of hashes that differ in a few bits; in a crowd of alike ones, each with its neighbours only."""
    close: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(16 * band)).astype(np.uint16)
        order = np.lexsort((hashes, keys))
        for distance in range(1, _NEIGHBOURS + 1):
            left, right = order[:-distance], order[distance:]
            alike = keys[left] == keys[right]
            left, right = left[alike], right[alike]
            if not len(left):
                break
            differing = np.unpackbits((hashes[left] ^ hashes[right]).view(np.uint8).reshape(-1, 8), axis=1).sum(1)
            near = differing <= MAX_BITS
            close.update(zip(left[near].tolist(), right[near].tolist(), strict=True))
    return close


def divide(
    digests: Sequence[bytes], groups: NDArray[np.intp], targets: NDArray[np.intp], parts: int, seed: str
) -> NDArray[np.intp]:
    """Divide the pictures of each class into parts of about equal size; a group of duplicates is never divided.

    The last parts get fewer pictures where the numbers do not divide evenly, and none where there are too few.

    Args:
        digests: of the files.
        groups: which pictures belong together, (N,).
        targets: class of each picture, (N,).
        parts: how many.
        seed: another one divides differently.

    Returns:
        The part of each picture, (N,).
    """
    keys = [hashlib.sha256(seed.encode() + digest).digest() for digest in digests]
    members: dict[int, list[int]] = {}
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        members.setdefault(int(groups[index]), []).append(index)
    counts = np.zeros((int(targets.max()) + 1, parts), np.intp)
    result = np.zeros(len(keys), np.intp)
    for indices in members.values():
        classes = targets[indices]
        part = int(counts[classes].sum(0).argmin())
        result[indices] = part
        counts[:, part] += np.bincount(classes, minlength=len(counts))
    return result

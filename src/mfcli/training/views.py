"""What a head is trained on: the features of pictures and of their mirror images, computed once.

They are kept in the cache by the digest of the file and by everything that shapes them, so that a second training, or
one that was killed, computes only what is new.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import OutputError, PictureError, UsageError
from mfcli.files import is_file, lock, read_json, sha256_of_json, write_atomically
from mfcli.inference.pipeline import Done, run_pipeline
from mfcli.inference.predictor import Predictor
from mfcli.inference.preparation import PreparedPicture
from mfcli.inputs.source import Source
from mfcli.models.splits import hash_pictures
from mfcli.results import Failure, Progress, Tally
from mfcli.settings import Settings, usable_cores

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Views:
    """A picture as a head sees it.

    Attributes:
        digest: SHA-256 of its file.
        width: pixels of the upright picture.
        height: likewise.
        hash: its difference hash, see `models.splits`.
        features: as it is and mirrored, float32 (2, dim).
    """

    digest: bytes
    width: int
    height: int
    hash: int
    features: NDArray[np.float32]


def compute_views(
    predictor: Predictor, sources: Sequence[Source], settings: Settings | None, progress: Progress = lambda _: None
) -> list[Views | Failure]:
    """Return the views of pictures in their order, or why one cannot be read.

    Args:
        predictor: its engine computes features.
        sources: the pictures.
        settings: locate the cache; None, or without one, for computing everything.
        progress: told the counts.

    Raises:
        EngineError: the engine fails.
    """
    digests = _list_digests(sources, settings)
    store = _Store(predictor, settings)
    wanted = {digest: source for digest, source in zip(digests, sources, strict=True) if isinstance(digest, bytes)}
    known = store.read(wanted)
    failures: dict[bytes, Failure] = {}
    missing = {digest: source for digest, source in wanted.items() if digest not in known}
    for done, views in enumerate(_compute_missing(predictor, missing, store), start=1):
        if isinstance(views, Views):
            known[views.digest] = views
        else:
            failures[views[0]] = views[1]
        progress(Tally(done, len(failures), len(wanted) - len(missing), len(wanted)))
    return [
        digest if isinstance(digest, Failure) else known[digest] if digest in known else failures[digest]
        for digest in digests
    ]


def _list_digests(sources: Sequence[Source], settings: Settings | None) -> list[bytes | Failure]:
    """Return the digests of files: those in the cache where device, inode, size and both times are as they were."""
    index = _find_index(sources, settings)
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or damaged
        known = dict(read_json(index)) if index else {}
    identities = [_identify(source) for source in sources]

    def get(source: Source, identity: list[int] | None) -> bytes | Failure:
        recorded = known.get(source.argument)
        if identity and isinstance(recorded, list) and recorded[:-1] == identity:
            digest = str(recorded[-1])
            if _SHA256.fullmatch(digest):
                return bytes.fromhex(digest)
        return _read_digest(source)

    with ThreadPoolExecutor(2 * usable_cores()) as pool:
        digests = list(pool.map(get, sources, identities))
    found = {
        source.argument: [*identity, digest.hex()]
        for source, identity, digest in zip(sources, identities, digests, strict=True)
        if identity and isinstance(digest, bytes)
    }
    if index and found != known:
        with contextlib.suppress(OSError):  # in a read-only cache they are computed each time
            write_atomically(index, json.dumps(found).encode())
    return digests


def _find_index(sources: Sequence[Source], settings: Settings | None) -> Path | None:
    """Return where the digests of a dataset are kept; None without a cache."""
    with contextlib.suppress(UsageError, ValueError):  # no cache directory; no pictures
        if settings is not None:
            folder = Path(os.path.commonpath([source.argument for source in sources])).resolve()
            name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
            return settings.cache_dir / "digests" / f"pictures-{name}.json"
    return None


def _identify(source: Source) -> list[int] | None:
    """Return what changes whenever a file does, as in git's index; None for what is not a file."""
    if source.opener is not None:
        return None
    with contextlib.suppress(OSError):
        status = Path(source.argument).stat()
        return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return None


def _read_digest(source: Source) -> bytes | Failure:
    try:
        with source.open() as file:
            return hashlib.sha256(file.read()).digest()
    except PictureError as error:
        return Failure(error.code, error.message)


_Failed = tuple[bytes, Failure]


def _compute_missing(predictor: Predictor, missing: dict[bytes, Source], store: "_Store") -> Iterable[Views | _Failed]:
    """Yield the views of each picture, or why there are none."""

    def prepare(
        item: tuple[bytes, Source], *, alone: bool = False
    ) -> tuple[bytes, PreparedPicture] | Done[Views | _Failed]:
        digest, source = item
        prepared = predictor.prepare(source, alone=alone)
        if not isinstance(prepared, Done):
            return digest, prepared
        assert prepared.result.error is not None  # only failures are done
        return Done((digest, prepared.result.error))

    def compute(pictures: Sequence[tuple[bytes, PreparedPicture]]) -> list[Views | _Failed]:
        pixels = np.stack([picture.pixels for _, picture in pictures])
        _, as_is = predictor.compute(pixels)
        _, mirrored = predictor.compute(np.ascontiguousarray(pixels[..., ::-1]))
        features = np.stack([as_is, mirrored], 1)
        hashes = hash_pictures(pixels).tolist()
        views = [
            Views(digest, picture.width, picture.height, *values)
            for (digest, picture), *values in zip(pictures, hashes, features, strict=True)
        ]
        store.append(views)
        return list(views)

    config = predictor.pipeline_config()
    predictor.start_decoders(config)
    return run_pipeline(missing.items(), prepare, compute, config, partial(prepare, alone=True))


class _Store:
    """The views in the cache: a file of records of equal size after a line of text, to which new ones are appended.

    A record has a checksum; what a killed process left at the end is dropped. Where the cache cannot be written, the
    views are not kept.
    """

    def __init__(self, predictor: Predictor, settings: Settings | None) -> None:
        shaping = {name: predictor.settings.values[name] for name in _SHAPING}
        key = sha256_of_json(shaping)
        self._path: Path | None = None
        with contextlib.suppress(UsageError):  # no cache directory
            folder = None if settings is None else settings.cache_dir / "features"
            self._path = folder and folder / f"{predictor.artifact.variant}-{key[:16]}.bin"
        self._thread_lock = threading.Lock()

    def read(self, wanted: Iterable[bytes]) -> dict[bytes, Views]:
        """Return the stored views, by digest."""
        if self._path is None or not is_file(self._path):
            return {}
        wanted = set(wanted)
        known: dict[bytes, Views] = {}
        try:
            with self._locked(self._path), self._path.open("r+b") as file:
                header = file.readline(_MAX_HEADER)
                kind = _record_type(int(header.split()[-1]))
                start, data = len(header), file.read()
                count = len(data) // kind.itemsize
                for index, record in enumerate(np.frombuffer(data, kind, count)):
                    if zlib.crc32(record.tobytes()[:-4]) != record["checksum"]:
                        count = index
                        break
                    digest = record["digest"].tobytes()
                    if digest in wanted:
                        known[digest] = Views(
                            digest, int(record["width"]), int(record["height"]), int(record["hash"]), record["features"]
                        )
                file.truncate(start + count * kind.itemsize)
        except (OSError, OutputError, ValueError, IndexError):  # read-only, or not ours
            self._path = None
        return known

    def append(self, views: Sequence[Views]) -> None:
        """Keep views."""
        if self._path is None:
            return
        dim = views[0].features.shape[1]
        records = np.zeros(len(views), _record_type(dim))
        records["digest"] = [np.frombuffer(own.digest, np.uint8) for own in views]
        for name in ("width", "height", "hash", "features"):
            records[name] = [getattr(own, name) for own in views]
        records["checksum"] = [zlib.crc32(record.tobytes()[:-4]) for record in records]
        try:
            with self._thread_lock, self._locked(self._path), self._path.open("ab") as file:
                header = b"" if file.tell() else f"mfcli.features {dim}\n".encode()
                file.write(header + records.tobytes())
        except (OSError, OutputError):
            self._path = None

    @staticmethod
    def _locked(path: Path) -> AbstractContextManager[None]:
        return lock(path.with_suffix(".lock"), "another training", lambda _: None)


_SHAPING = ("format_version", "artifact", "weights_sha256", "preprocess", "engine", "precision", "exif", "decode")
"""The settings of a run that shape features."""
_MAX_HEADER = 64


def _record_type(dim: int) -> np.dtype[np.void]:
    numbers = [("width", "<i4"), ("height", "<i4"), ("hash", "<u8")]
    return np.dtype([("digest", "u1", (32,)), *numbers, ("features", "<f4", (2, dim)), ("checksum", "<u4")])

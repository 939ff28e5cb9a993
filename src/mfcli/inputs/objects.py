"""Pictures in object stores and in data sets of the Hugging Face hub: listed by keys, and fetched ahead of decoding.

A prefix that ends with a slash is a folder. Objects come in the order of their keys, as stores list them: a natural
order would need all names first. Archives are copied to a temporary file, which is kept for the next member.
"""

import io
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from types import ModuleType
from typing import IO, TYPE_CHECKING, BinaryIO

from mfcli import stores
from mfcli.errors import FailureCode, PictureError
from mfcli.files import is_url, url_scheme
from mfcli.inputs.read_ahead import Download
from mfcli.inputs.selection import OFFLINE, Selection
from mfcli.inputs.walk import FileState, FoundPath, compile_member_glob, find_wildcard, open_file
from mfcli.results import Failure
from mfcli.store_urls import HUB_SCHEME, split_store_url
from mfcli.stores import StoredObject

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def _get_client(url: str) -> ModuleType:
    """Return the module whose functions list and read what a URL names."""
    if url_scheme(url) != HUB_SCHEME:
        return stores
    from mfcli.inputs import hub_datasets  # requests takes 100 ms to import

    return hub_datasets


def open_ahead(url: str, selection: Selection) -> Download:
    """Return what opens an object, and can begin before."""

    def read(max_bytes: int) -> BinaryIO:
        file: BinaryIO = _get_client(url).read_object(url, selection.timeout_s, max_bytes)
        return file

    return Download(read, selection.max_bytes)


def walk_prefix(url: str, selection: Selection) -> Iterator[FoundPath]:
    """Yield the pictures below a prefix, by the rules of `walk_folder`, in the order of their keys."""
    _, prefix = split_store_url(url)
    folder = f"{prefix.removesuffix('/')}/" if prefix else ""
    yield from _find(url, folder, lambda key: selection.takes_member(key[len(folder) :]), selection)


def match_keys(url: str, selection: Selection) -> Iterator[FoundPath]:
    """Yield what a glob matches, by the rules of `walk_glob`, and the object of exactly this name."""
    _, pattern = split_store_url(url)
    matches = compile_member_glob(pattern, selection)
    yield from _find(url, pattern[: find_wildcard(pattern)], lambda key: key == pattern or matches(key), selection)


def _find(url: str, prefix: str, takes: Callable[[str], bool], selection: Selection) -> Iterator[FoundPath]:
    """Yield the wanted objects whose keys begin with `prefix`, and a failure of `url` where the listing ends early."""
    if selection.offline:
        yield FoundPath(url, OFFLINE)
        return
    bucket, _ = split_store_url(url)
    try:
        for found in _get_client(bucket).list_objects(bucket + prefix, selection.timeout_s):
            if not _is_folder(found) and takes(found.key):
                yield FoundPath(bucket + found.key, state=FileState(found.size_bytes, etag=found.etag))
    except PictureError as error:
        yield FoundPath(url, Failure(error.code, error.message))


def _is_folder(found: StoredObject) -> bool:
    """Whether an object only stands for a folder, as consoles make them; the slash at the end of its key is gone."""
    return not found.size_bytes and not PurePosixPath(found.key).suffix


_copies: "dict[str, IO[bytes]]" = {}
"""The last archive that was copied; the file is deleted when it is replaced, or with the program."""
_failures: dict[str, tuple[float, PictureError]] = {}
"""The last archive that could not be reached, when and why: each of its members in a plan asks for it again."""
_REPEAT_S = 60.0
_lock = threading.Lock()


def open_archive(name: str, selection: Selection) -> BinaryIO:
    """Open an archive that may be an object, of which the last one that was opened is kept in a temporary file.

    Raises:
        PictureError: it cannot be read.
    """
    if not is_url(name):
        return open_file(name)
    if selection.offline:
        raise PictureError(OFFLINE.code, OFFLINE.message)
    failed_s, failure = _failures.get(name, (-math.inf, None))
    if failure is not None and time.monotonic() - failed_s < _REPEAT_S:
        raise PictureError(failure.code, failure.message)
    client = _get_client(name)
    try:
        return _open_copy(client, name, selection.timeout_s)
    except PictureError as error:
        if error.code in (FailureCode.NETWORK, FailureCode.TIMEOUT):
            _failures.clear()
            _failures[name] = time.monotonic(), error
        raise


def _open_copy(client: ModuleType, name: str, timeout_s: float) -> BinaryIO:
    import tempfile  # takes a few milliseconds

    version = client.identify_object(name, timeout_s)
    with _lock:
        if version not in _copies:
            _copies.clear()
            file = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, it ends with the process, however that ends
            client.download_object(name, file, timeout_s)
            _copies[version] = file
        return io.BufferedReader(_Reader(_copies[version]))


class _Reader(io.RawIOBase):
    """Reads a file from a position of its own, and keeps it open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position = file, 0

    def fileno(self) -> int:
        return self._file.fileno()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: os.fstat(self.fileno()).st_size}
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        read = os.preadv(self.fileno(), [buffer], self._position)
        self._position += read
        return read

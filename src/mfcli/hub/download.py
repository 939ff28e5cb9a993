"""One address -> one file, whole or not at all: resolve, resume, verify.

Speaks to servers that behave like the Hugging Face hub (a redirect that carries the file's digest and size, with a
signed address behind it that expires) and to plain ones. Knows nothing of models. What has arrived of a file stays,
keyed by address and entity tag, so that any later process goes on from its last byte.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from mfcli.errors import OutputError
from mfcli.files import MAKE_ROOM, cache_write_error, sha256_of, write_atomically
from mfcli.http import (
    Backoff,
    RefusedError,
    RemoteFileInfo,
    RetryReason,
    SourceError,
    TryLaterError,
    get,
    get_strong_etag,
    open_session,
    parse_size,
    redact_url,
    resolve_url,
    retry_reason,
)
from mfcli.results import Progress, Transfer

MAX_RESOLVES = 3
"""How often an expired signed address is asked for again."""

_FIRST = "the first download"
_CHUNK_BYTES = 1 << 16
_SLOW_S = 60.0  # less than _PROGRESS_BYTES in this time counts as no connection
_PROGRESS_BYTES = 1 << 16  # a try that brought less counts as one that brought nothing


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A file that arrived whole.

    Attributes:
        path: where it lies, still among the partial files; the caller moves it.
        remote: what the server said of it.
        sha256: its digest, computed from the bytes that arrived.
        size_bytes: its size.
    """

    path: Path
    remote: RemoteFileInfo
    sha256: str
    size_bytes: int


def download_file(
    url: str,
    partial_dir: Path,
    *,
    expected_sha256: Mapping[str, str],
    first_sha256: str | None = None,
    max_bytes: int,
    name: str,
    progress: Progress,
) -> DownloadedFile:
    """Fetch a file into `partial_dir`, going on with what is there of it, and verify it.

    Args:
        url: the address; https, or http where the caller's own server speaks that.
        partial_dir: where the bytes are collected.
        expected_sha256: digests that the file must have, by a word that says where each is from.
        first_sha256: the digest of what first came from there; it counts where nobody else says one.
        max_bytes: a longer file is refused.
        name: what progress calls the file.
        progress: told how many bytes are there.

    Raises:
        SourceError: the source cannot deliver it, or delivers something else; nothing of the wrong file stays.
        OutputError: the disk is full or cannot be written.
    """
    with open_session() as session, _disk_errors(partial_dir):
        remote = resolve_url(session, url, progress)
        if remote.size_bytes is not None and remote.size_bytes > max_bytes:
            raise SourceError(f"{redact_url(url)} has {remote.size_bytes} bytes, more than this model can have")
        _verify(
            remote.sha256, expected_sha256, url, name
        )  # before a byte is fetched, where the server tells the digest
        partial = _Partial(partial_dir, remote, name)
        partial.check_free_space()
        total = remote.size_bytes
        transfer = _Transfer(
            session, remote, partial, max_bytes, progress, lambda done: progress(Transfer(name, done, total))
        )
        is_continued = partial.size_bytes > 0
        while True:
            transfer.run()
            try:
                digest = _checked(partial, transfer.remote, expected_sha256, first_sha256, name)
            except SourceError:
                if not is_continued:
                    raise
                is_continued = False
                progress(f"what had arrived of {name} before was damaged: starting over")
            else:
                partial.forget()
                return DownloadedFile(partial.path, transfer.remote, digest, partial.size_bytes)


def _checked(
    partial: "_Partial", remote: RemoteFileInfo, expected: Mapping[str, str], first: str | None, name: str
) -> str:
    """Return the digest of what arrived, if it is the right one; nothing of another file stays."""
    digest = partial.sha256()
    vouched = {"the server's X-Linked-Etag": remote.sha256, **expected}
    try:
        _verify(digest, vouched if any(vouched.values()) else {_FIRST: first}, remote.url, name)
    except SourceError:
        partial.discard()
        raise
    return digest


def _verify(digest: str | None, expected: Mapping[str, str | None], url: str, name: str) -> None:
    for origin, value in expected.items():
        if digest is not None and value is not None and digest != value.lower():
            raise SourceError(
                f"{redact_url(url)} has SHA-256 {digest}, but {origin} says {value.lower()}",
                f"if the new file is the right one: mf download {name} --expect-sha256 {digest}"
                if origin == _FIRST
                else None,
            )


class _Partial:
    """What has arrived of one version of a file, and what is needed to go on with it."""

    def __init__(self, folder: Path, remote: RemoteFileInfo, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        url_key = hashlib.sha256(f"{name} {remote.url}".encode()).hexdigest()[:16]
        version_key = hashlib.sha256((remote.etag or "").encode()).hexdigest()[:16]
        self.path = folder / f"{url_key}-{version_key}.part"
        self._notes = self.path.with_suffix(".json")
        self._remote = remote
        for other in folder.glob(f"{url_key}-*"):  # of versions that the server no longer has
            if other.stem != self.path.stem:
                other.unlink(missing_ok=True)
        if remote.etag is None:  # nothing says that the next bytes would be of the same file
            self.discard()

    @property
    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def is_whole(self) -> bool:
        return self._remote.size_bytes is not None and self.size_bytes == self._remote.size_bytes

    @property
    def validator(self) -> str | None:
        """The entity tag of the server that sent the first bytes, for If-Range."""
        try:
            value = json.loads(self._notes.read_bytes())["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value if isinstance(value, str) else None

    def remember(self, validator: str | None) -> None:
        write_atomically(
            self._notes, json.dumps({"url": redact_url(self._remote.url), "validator": validator}).encode()
        )

    def forget(self) -> None:
        """Delete the notes: a file that is whole needs none."""
        self._notes.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def check_free_space(self) -> None:
        missing = (self._remote.size_bytes or 0) - self.size_bytes
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise OutputError(
                f"{missing} bytes are still to come and {self.path.parent} has {free} free",
                MAKE_ROOM,
            )

    def sha256(self) -> str:
        return sha256_of(self.path)


class _FreshAddressError(Exception):
    """The signed address had expired and there is a new one: ask at once."""


class _Transfer:
    """Brings the bytes: asks again, with patience, until the file is whole or the source is given up."""

    def __init__(
        self,
        session: requests.Session,
        remote: RemoteFileInfo,
        partial: _Partial,
        max_bytes: int,
        progress: Progress,
        tell: Callable[[int], None],
    ) -> None:
        self.remote = remote
        self._session = session
        self._partial = partial
        self._max_bytes = max_bytes
        self._progress = progress
        self._tell = tell
        self._resolves_left = MAX_RESOLVES

    def run(self) -> None:
        patience, most = Backoff(self.remote.url, self._progress), self._partial.size_bytes
        while not self._partial.is_whole:
            try:
                if self._take_one_response():
                    return
                trouble = RetryReason("the connection ended early")
            except _FreshAddressError:
                continue
            except TryLaterError as later:
                trouble = later.trouble
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                trouble = retry_reason(error)
            if self._partial.size_bytes - most >= _PROGRESS_BYTES:  # more than ever: not the same bytes once more
                most = self._partial.size_bytes
                patience.restart()
                self._resolves_left = MAX_RESOLVES
            patience.wait(trouble)

    def _take_one_response(self) -> bool:
        """Take what one response brings; return whether the file is whole, as far as anybody can tell."""
        offset, validator = self._partial.size_bytes, self._partial.validator
        if offset and validator is None and self.remote.sha256 is None:
            self._partial.discard()  # neither the server nor a digest would notice another file's bytes
            offset = 0
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator is not None:
            headers["If-Range"] = validator
        with get(self._session, self.remote.location, headers) as response:
            if response.status_code == 416:  # there is no byte after those that are here
                ends_here = response.headers.get("Content-Range") == f"bytes */{offset}"
                if ends_here and self.remote.size_bytes is None:
                    return True
                self._partial.discard()
                if ends_here:
                    raise SourceError(f"{redact_url(self.remote.url)} has {offset} bytes, not the announced number")
                return False
            if response.status_code in (401, 403) and self._resolve_again():
                raise _FreshAddressError
            if response.status_code not in (200, 206):
                raise RefusedError(self.remote.url, response.status_code)
            if response.status_code == 200 or not self._continues(response, offset):
                self._partial.discard()
                offset = 0
                if response.status_code == 206:
                    return False
            if offset == 0:
                self._partial.remember(get_strong_etag(response))
            self._append(response)
        if self.remote.size_bytes is not None:
            return self._partial.is_whole
        announced = parse_size(response.headers.get("Content-Length"))
        return announced is None or self._partial.size_bytes == offset + announced

    def _continues(self, response: requests.Response, offset: int) -> bool:
        """Whether a 206 goes on with the file that is here: at its next byte, of the same version and size."""
        whole = "*" if self.remote.size_bytes is None else str(self.remote.size_bytes)
        start, _, total = response.headers.get("Content-Range", "").partition("/")
        validator = self._partial.validator
        same_version = get_strong_etag(response) == validator if validator else self.remote.sha256 is not None
        return start.startswith(f"bytes {offset}-") and whole in ("*", total) and same_version

    def _resolve_again(self) -> bool:
        """Ask for a fresh signed address, a few times; a version that changed meanwhile starts over."""
        if self.remote.location == self.remote.url or self._resolves_left == 0:
            return False
        self._resolves_left -= 1
        fresh = resolve_url(self._session, self.remote.url, self._progress)
        if fresh.etag != self.remote.etag:
            raise SourceError(
                f"{redact_url(self.remote.url)} changed while it was fetched", "run the same command again"
            )
        self.remote = fresh
        return True

    def _append(self, response: requests.Response) -> None:
        limit = self.remote.size_bytes if self.remote.size_bytes is not None else self._max_bytes
        with self._partial.path.open("ab") as file:
            size = file.tell()
            self._tell(size)
            try:
                for chunk in _as_they_come(response):
                    size += len(chunk)
                    if size > limit:
                        break
                    file.write(chunk)
                    self._tell(size)
            finally:
                file.flush()
                os.fsync(file.fileno())
        if size > limit:
            self._partial.discard()
            raise SourceError(f"{redact_url(self.remote.url)} sends more than {limit} bytes")


def _as_they_come(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as they arrive, so that a cut loses none; ends where the connection does, or crawls."""
    since, arrived = time.monotonic(), 0
    while chunk := response.raw.read1(_CHUNK_BYTES):
        yield chunk
        arrived += len(chunk)
        if arrived >= _PROGRESS_BYTES:
            since, arrived = time.monotonic(), 0
        elif time.monotonic() - since > _SLOW_S:
            return


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk says into an OutputError; requests' exceptions are OSErrors too and pass."""
    try:
        yield
    except requests.RequestException as error:  # an address that is none, for instance
        raise SourceError(str(error)) from error
    except OSError as error:
        raise cache_write_error(folder, error) from error

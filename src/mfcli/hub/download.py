"""Download of one file, resumable and verified: it is returned complete or not at all.

Works with servers like the Hugging Face hub (a redirect carries the file's digest and size and leads to a signed
address that expires) and with plain ones. Partial files are kept by address and entity tag, so that any later process
resumes at the last byte. Knows nothing of models.
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
    classify_error,
    get,
    get_strong_etag,
    open_session,
    parse_size,
    redact_url,
    resolve_url,
)
from mfcli.results import Progress, Transfer

MAX_RESOLVES = 3
"""How often an expired signed address is requested again."""

_FIRST = "the digest of the first download"
_CHUNK_BYTES = 1 << 16
_SLOW_S = 60.0  # less than _PROGRESS_BYTES in this time counts as a broken connection
_PROGRESS_BYTES = 1 << 16  # a try that adds less counts as one without progress


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A complete and verified file.

    Attributes:
        path: its place among the partial files; the caller moves it.
        remote: the server's metadata.
        sha256: its digest, computed from the file.
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
    """Download a file into `partial_dir`, resuming a partial download of the same version, and verify it.

    Args:
        url: the address; http is meant for the caller's own servers.
        partial_dir: the folder of partial files.
        expected_sha256: digests that the file must have, each under the words that an error calls it by.
        first_sha256: the digest of the first download from this address; compared only if no other digest is known.
        max_bytes: a larger file is refused.
        name: the file's name in progress reports.
        progress: called with the number of bytes received so far.

    Raises:
        SourceError: the source cannot deliver the file, or delivers another one, of which nothing is kept.
        OutputError: the disk is full or not writable.
    """
    with open_session() as session, _translate_disk_errors(partial_dir):
        remote = resolve_url(session, url, progress)
        if remote.size_bytes is not None and remote.size_bytes > max_bytes:
            raise SourceError(f"{redact_url(url)} has {remote.size_bytes} bytes, more than the limit of {max_bytes}")
        if remote.sha256 is not None:  # before the first byte of the body
            _compare_digest(remote.sha256, expected_sha256, url, name)
        partial = _Partial(partial_dir, remote, name)
        partial.check_free_space()
        total = remote.size_bytes
        transfer = _Transfer(
            session, remote, partial, max_bytes, progress, lambda done: progress(Transfer(name, done, total))
        )
        is_resumed = partial.size_bytes > 0
        while True:
            transfer.run()
            try:
                digest = _verify(partial, transfer.remote, expected_sha256, first_sha256, name)
            except SourceError:
                if not is_resumed:
                    raise
                is_resumed = False
                progress(f"the partial download of {name} was damaged: starting over")
            else:
                partial.delete_notes()
                return DownloadedFile(partial.path, transfer.remote, digest, partial.size_bytes)


def _verify(
    partial: "_Partial", remote: RemoteFileInfo, expected: Mapping[str, str], first: str | None, name: str
) -> str:
    """Return the digest of a downloaded file; discard the file if it is not the expected one."""
    digest = sha256_of(partial.path)
    known = {"the server's X-Linked-Etag": remote.sha256, **expected}
    try:
        _compare_digest(digest, known if any(known.values()) else {_FIRST: first}, remote.url, name)
    except SourceError:
        partial.discard()
        raise
    return digest


def _compare_digest(digest: str, expected: Mapping[str, str | None], url: str, name: str) -> None:
    for label, value in expected.items():
        if value is not None and digest != value.lower():
            raise SourceError(
                f"{redact_url(url)} has SHA-256 {digest}, but {label} is {value.lower()}",
                f"to accept the new file: mf download {name} with expect_sha256={digest}" if label == _FIRST else None,
            )


class _Partial:
    """The bytes received so far of one version of a file, with the notes that are needed to resume."""

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
        if remote.etag is None:  # the next bytes could belong to another version
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

    def write_notes(self, validator: str | None) -> None:
        write_atomically(
            self._notes, json.dumps({"url": redact_url(self._remote.url), "validator": validator}).encode()
        )

    def delete_notes(self) -> None:
        self._notes.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def check_free_space(self) -> None:
        missing = (self._remote.size_bytes or 0) - self.size_bytes
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise OutputError(f"{missing} more bytes are needed, but {self.path.parent} has {free} free", MAKE_ROOM)


class _FreshAddressError(Exception):
    """The signed address had expired and was replaced: retry without waiting."""


class _Transfer:
    """Requests the missing bytes, with retries, until the file is complete or the source is given up."""

    def __init__(
        self,
        session: requests.Session,
        remote: RemoteFileInfo,
        partial: _Partial,
        max_bytes: int,
        progress: Progress,
        report: Callable[[int], None],
    ) -> None:
        self.remote = remote
        self._session = session
        self._partial = partial
        self._max_bytes = max_bytes
        self._progress = progress
        self._report = report
        self._resolves_left = MAX_RESOLVES

    def run(self) -> None:
        backoff, most_bytes = Backoff(self.remote.url, self._progress), self._partial.size_bytes
        while not self._partial.is_whole:
            try:
                if self._receive_response():
                    return
                reason = RetryReason("the connection ended early")
            except _FreshAddressError:
                continue
            except TryLaterError as later:
                reason = later.reason
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = classify_error(error)
            if self._partial.size_bytes - most_bytes >= _PROGRESS_BYTES:  # compared with the most: it may start over
                most_bytes = self._partial.size_bytes
                backoff.restart()
                self._resolves_left = MAX_RESOLVES
            backoff.wait(reason)

    def _receive_response(self) -> bool:
        """Request the missing bytes and append those that arrive; return whether the file is complete."""
        offset, headers = self._prepare_range()
        with get(self._session, self.remote.location, headers) as response:
            match response.status_code:
                case 200:
                    self._partial.discard()
                    offset = 0
                case 206 if self._continues(response, offset):
                    pass
                case 206:
                    self._partial.discard()
                    return False
                case 416:
                    return self._handle_end_of_file(response, offset)
                case 401 | 403 if self._renew_location():
                    raise _FreshAddressError
                case status:
                    raise RefusedError(self.remote.url, status)
            if offset == 0:
                self._partial.write_notes(get_strong_etag(response))
            self._append_body(response)
        if self.remote.size_bytes is not None:
            return self._partial.is_whole
        length = parse_size(response.headers.get("Content-Length"))
        return length is None or self._partial.size_bytes == offset + length

    def _prepare_range(self) -> tuple[int, dict[str, str]]:
        """Return how many bytes are kept, and the headers of a request for the rest."""
        offset, validator = self._partial.size_bytes, self._partial.validator
        if offset and validator is None and self.remote.sha256 is None:
            self._partial.discard()  # neither the server nor a digest would notice that the file has changed
            offset = 0
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator is not None:
            headers["If-Range"] = validator
        return offset, headers

    def _continues(self, response: requests.Response, offset: int) -> bool:
        """Whether a 206 response continues the partial file: at its next byte, with the same version and size."""
        size = "*" if self.remote.size_bytes is None else str(self.remote.size_bytes)
        start, _, total = response.headers.get("Content-Range", "").partition("/")
        validator = self._partial.validator
        is_same_version = get_strong_etag(response) == validator if validator else self.remote.sha256 is not None
        return start.startswith(f"bytes {offset}-") and size in ("*", total) and is_same_version

    def _handle_end_of_file(self, response: requests.Response, offset: int) -> bool:
        """Handle 416, sent if the file has no byte at `offset`; return whether the partial file is complete."""
        ends_here = response.headers.get("Content-Range") == f"bytes */{offset}"
        if ends_here and self.remote.size_bytes is None:
            return True
        self._partial.discard()
        if ends_here:
            raise SourceError(
                f"{redact_url(self.remote.url)} has {offset} bytes instead of the announced {self.remote.size_bytes}"
            )
        return False

    def _renew_location(self) -> bool:
        """Request a new signed address, at most MAX_RESOLVES times without progress; return whether there is one."""
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

    def _append_body(self, response: requests.Response) -> None:
        limit = self.remote.size_bytes if self.remote.size_bytes is not None else self._max_bytes
        with self._partial.path.open("ab") as file:
            size = file.tell()
            self._report(size)
            try:
                for chunk in _read_chunks(response):
                    size += len(chunk)
                    if size > limit:
                        break
                    file.write(chunk)
                    self._report(size)
            finally:
                file.flush()
                os.fsync(file.fileno())
        if size > limit:
            self._partial.discard()
            raise SourceError(f"{redact_url(self.remote.url)} sent more than {limit} bytes")


def _read_chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as they arrive, so that a broken connection loses none; stop if the connection is too slow."""
    since, arrived = time.monotonic(), 0
    while chunk := response.raw.read1(_CHUNK_BYTES):
        yield chunk
        arrived += len(chunk)
        if arrived >= _PROGRESS_BYTES:
            since, arrived = time.monotonic(), 0
        elif time.monotonic() - since > _SLOW_S:
            return


@contextmanager
def _translate_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the disk into an OutputError; those of requests, OSErrors too, into a SourceError."""
    try:
        yield
    except requests.RequestException as error:  # a malformed address, for instance
        raise SourceError(str(error)) from error
    except OSError as error:
        raise cache_write_error(folder, error) from error

"""Download of one checkpoint from one address, resumable and verified: it is returned complete or not at all.

Works with servers like the Hugging Face hub (a redirect carries the file's digest and size and leads to a signed
address that expires) and with plain ones. Partial files are kept by address and entity tag, so that any later process
resumes at the last byte. A file that is not the model's is given up as soon as its header shows it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests
import urllib3

from mfcli.connections import Watch, watch
from mfcli.errors import ModelError, OutputError
from mfcli.files import MAKE_ROOM, cache_write_error, read_json, sha256_of, write_atomically
from mfcli.http import (
    Backoff,
    RefusedError,
    RetryReason,
    SourceError,
    TryLaterError,
    classify_error,
    get,
    get_strong_etag,
    parse_size,
    redact_url,
    resolve_url,
)
from mfcli.hub.cache import compare_digest
from mfcli.models.checkpoint import prove_beginning, prove_checkpoint
from mfcli.models.registry import Variant
from mfcli.models.safetensors import MAX_BEGINNING_BYTES
from mfcli.results import Progress, Transfer

MAX_RESOLVES = 3
"""How often an expired signed address is requested again."""

_SPARE_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 16
_SLOW_S = 60.0  # less than _PROGRESS_BYTES in this time counts as a broken connection
_PROGRESS_BYTES = 1 << 16  # a try that adds less counts as one without progress


class WrongFileError(SourceError):
    """The source has another file than the expected one."""


class _FreshAddressError(Exception):
    """The signed address had expired and was replaced: retry without waiting."""


class Download:
    """The download of a model's checkpoint from one address.

    Attributes:
        remote: the server's metadata.
        path: the bytes received so far; beside them are the notes that are needed to resume.
    """

    def __init__(
        self,
        session: requests.Session,
        url: str,
        variant: Variant,
        expected_sha256: Mapping[str, str],
        cache_dir: Path,
        progress: Progress,
        *,
        is_patient: bool = True,
    ) -> None:
        """Request the metadata, which must fit before the first byte of the body is requested.

        Args:
            session: sends the requests.
            url: the address; http is meant for the caller's own servers.
            variant: the model; its name is shown in progress reports.
            expected_sha256: digests that the file must have, each under the words that an error calls it by.
            cache_dir: where partial files are kept.
            progress: called before each retry, and with the number of bytes received so far.
            is_patient: see `resolve_url`.

        Raises:
            SourceError: the source has no such file.
        """
        self.remote = remote = resolve_url(session, url, progress, is_patient=is_patient)
        self._session = session
        self._variant = variant
        self._expected = expected_sha256
        self._progress = progress
        self._resolves_left = MAX_RESOLVES
        self._max_bytes = 16 * variant.params + _SPARE_BYTES  # four times float32: with an optimizer's state
        self._is_proved = False
        if remote.size_bytes is not None and remote.size_bytes > self._max_bytes:
            raise SourceError(
                f"{redact_url(url)} has {remote.size_bytes} bytes, more than the limit of {self._max_bytes}"
            )
        if remote.sha256 is not None:
            with self._refuse_wrong_file():
                compare_digest("it", remote.sha256, expected_sha256)
        self._url_key = hashlib.sha256(f"{variant.name} {url}".encode()).hexdigest()[:16]
        version_key = hashlib.sha256((remote.etag or "").encode()).hexdigest()[:16]
        self.path = cache_dir / "partial" / f"{self._url_key}-{version_key}.part"
        self._notes = self.path.with_suffix(".json")

    def run(self, first_sha256: str | None = None) -> str:
        """Receive the missing bytes, verify the file and return its digest; the caller moves it.

        Args:
            first_sha256: the digest of the first download from this address; compared if no other one is known.

        Raises:
            SourceError: the source cannot deliver the file, or delivers another one, of which nothing is kept.
            OutputError: the disk is full or not writable.
        """
        with _translate_disk_errors(self.path.parent):
            self._prepare_folder()
            is_resumed = self._size_bytes > 0
            while True:
                try:
                    self._receive()
                    with self._refuse_wrong_file():
                        digest = self._verify(first_sha256)
                except WrongFileError:
                    self._discard()
                    if not is_resumed:
                        raise
                    is_resumed = False
                    self._progress(f"the partial download of {self._variant.name} was damaged: starting over")
                else:
                    self._notes.unlink(missing_ok=True)
                    return digest

    def _prepare_folder(self) -> None:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob(f"{self._url_key}-*"):  # of versions that the server no longer has
            if other.stem != self.path.stem:
                other.unlink(missing_ok=True)
        if self.remote.etag is None:  # the next bytes could belong to another version
            self._discard()
        missing = (self.remote.size_bytes or 0) - self._size_bytes
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise OutputError(f"{missing} more bytes are needed, but {folder} has {free} free", MAKE_ROOM)

    @property
    def _size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def _is_whole(self) -> bool:
        return self.remote.size_bytes is not None and self._size_bytes == self.remote.size_bytes

    @property
    def _validator(self) -> str | None:
        """The entity tag of the server that sent the first bytes, for If-Range."""
        try:
            value = read_json(self._notes)["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value if isinstance(value, str) else None

    def _discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)
        self._is_proved = False

    @contextmanager
    def _refuse_wrong_file(self) -> Iterator[None]:
        """Turn the error of a file that is not the expected one into that of its source."""
        try:
            yield
        except ModelError as error:
            message = f"{redact_url(self.remote.url)} is not the checkpoint: {error.message}"
            raise WrongFileError(message, error.hint) from error

    def _verify(self, first_sha256: str | None) -> str:
        digest, expected = sha256_of(self.path), dict(self._expected)
        if self.remote.sha256:
            expected["the server's X-Linked-Etag"] = self.remote.sha256
        if not expected and first_sha256:
            hint = f"to accept the new file: mf download {self._variant.name} with expect_sha256={digest}"
            compare_digest("it", digest, {"the digest of the first download": first_sha256}, hint)
        compare_digest("it", digest, expected)
        prove_checkpoint(self.path, self._variant)
        return digest

    def _receive(self) -> None:
        """Request the missing bytes, with retries, until the file is complete or the source is given up."""
        backoff, most_bytes = Backoff(self.remote.url, self._progress), self._size_bytes
        while not self._is_whole:
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
            if self._size_bytes - most_bytes >= _PROGRESS_BYTES:  # compared with the most: it may start over
                most_bytes = self._size_bytes
                backoff.restart()
                self._resolves_left = MAX_RESOLVES
            backoff.wait(reason)

    def _receive_response(self) -> bool:
        """Request the missing bytes and append those that arrive; return whether the file is complete."""
        with watch(_SLOW_S) as watching:
            watching.public_only = self.remote.public_only
            return self._receive_watched(watching)

    def _receive_watched(self, watching: Watch) -> bool:
        offset, headers = self._prepare_range()
        with get(self._session, self.remote.location, headers, watching) as response:
            match response.status_code:
                case 200:
                    self._discard()
                    offset = 0
                case 206 if self._continues(response, offset):
                    pass
                case 206:
                    self._discard()
                    return False
                case 416:
                    return self._handle_end_of_file(response, offset)
                case 401 | 403 if self._renew_location():
                    raise _FreshAddressError
                case status:
                    raise RefusedError(self.remote.url, status)
            if offset == 0:
                notes = {"url": redact_url(self.remote.url), "validator": get_strong_etag(response)}
                write_atomically(self._notes, json.dumps(notes).encode())
            self._append_body(response, watching)
        if self.remote.size_bytes is not None:
            return self._is_whole
        length = parse_size(response.headers.get("Content-Length"))
        return length is None or self._size_bytes == offset + length

    def _prepare_range(self) -> tuple[int, dict[str, str]]:
        """Return how many bytes are kept, and the headers of a request for the rest."""
        offset, validator = self._size_bytes, self._validator
        if offset and validator is None and self.remote.sha256 is None:
            self._discard()  # neither the server nor a digest would notice that the file has changed
            offset = 0
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator is not None:
            headers["If-Range"] = validator
        return offset, headers

    def _continues(self, response: requests.Response, offset: int) -> bool:
        """Whether a 206 response continues the partial file: at its next byte, with the same version and size."""
        size = "*" if self.remote.size_bytes is None else str(self.remote.size_bytes)
        start, _, total = response.headers.get("Content-Range", "").partition("/")
        validator = self._validator
        is_same_version = get_strong_etag(response) == validator if validator else self.remote.sha256 is not None
        return start.startswith(f"bytes {offset}-") and size in ("*", total) and is_same_version

    def _handle_end_of_file(self, response: requests.Response, offset: int) -> bool:
        """Handle 416, sent if the file has no byte at `offset`; return whether the partial file is complete."""
        ends_here = response.headers.get("Content-Range") == f"bytes */{offset}"
        if ends_here and self.remote.size_bytes is None:
            return True
        self._discard()
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

    def _append_body(self, response: requests.Response, watching: Watch) -> None:
        limit = self.remote.size_bytes if self.remote.size_bytes is not None else self._max_bytes
        with self.path.open("a+b") as file:
            size = file.tell()
            self._report(size)
            try:
                for chunk in _read_chunks(response, watching):
                    size += len(chunk)
                    if size > limit:
                        break
                    file.write(chunk)
                    self._report(size)
                    if not self._is_proved:
                        file.seek(0)
                        with self._refuse_wrong_file():
                            self._is_proved = prove_beginning("it", file.read(MAX_BEGINNING_BYTES), self._variant)
            finally:
                file.flush()
                os.fsync(file.fileno())
        if size > limit:
            self._discard()
            raise SourceError(f"{redact_url(self.remote.url)} sent more than {limit} bytes")

    def _report(self, size_bytes: int) -> None:
        self._progress(Transfer(self._variant.name, size_bytes, self.remote.size_bytes))


def _read_chunks(response: requests.Response, watching: Watch) -> Iterator[bytes]:
    """Yield bytes as they arrive, so that a broken connection loses none; those that arrive move the deadline."""
    arrived = 0
    while chunk := response.raw.read1(_CHUNK_BYTES):
        yield chunk
        arrived += len(chunk)
        if arrived >= _PROGRESS_BYTES:
            watching.restart(_SLOW_S)
            arrived = 0


@contextmanager
def _translate_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the disk into an OutputError; those of requests, OSErrors too, into a SourceError."""
    try:
        yield
    except requests.RequestException as error:  # a malformed address, for instance
        raise SourceError(str(error)) from error
    except OSError as error:
        raise cache_write_error(folder, error) from error

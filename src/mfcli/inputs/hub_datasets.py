"""Files of data sets on the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION]/PATH, listed and read over https.

The functions are those of stores.py for reading. MF_ENDPOINT names another hub. The token is the one of Hugging Face's
own tools, and is sent to the hub alone, not to where it redirects.
"""

import io
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import IO, BinaryIO
from urllib.parse import quote, urlsplit

import requests
import urllib3
from requests.auth import AuthBase

from mfcli.connections import watch, watch_session
from mfcli.errors import FailureCode, ModelError, PictureError
from mfcli.http import Backoff, Session, TryLaterError, classify_error, get
from mfcli.settings import HUB, Settings, find_hub_token
from mfcli.store_urls import split_store_url
from mfcli.stores import StoredObject
from mfcli.version import __version__

_CHUNK_BYTES = 2**16
_MAX_PAGE_BYTES = 2**26
_thread = threading.local()
"""`session`: this thread's session."""


class _NoEntryError(Exception):
    """The data set has no such file or folder."""


def list_objects(url: str, timeout_s: float) -> Iterator[StoredObject]:
    """Yield the files of a data set whose paths begin with that of `url`, a page at a time.

    Raises:
        PictureError: not_found for a data set, permission, network, timeout, or unsupported for another URL.
    """
    repository, revision, prefix = _split(url)
    folder = quote(prefix.rpartition("/")[0])
    page = f"{_endpoint()}/api/datasets/{repository}/tree/{revision}/{folder}".rstrip("/") + "?recursive=true"
    while page:
        body = io.BytesIO()
        try:
            response = _receive(page, body, timeout_s, _MAX_PAGE_BYTES)
        except _NoEntryError:
            return
        yield from (found for found in _parse_page(body.getvalue()) if found.key.startswith(prefix))
        page = response.links.get("next", {}).get("url", "")


def _parse_page(body: bytes) -> list[StoredObject]:
    """Return the files in a page of a listing.

    Raises:
        PictureError: it is something else, such as the page of a proxy.
    """
    try:
        files = [entry for entry in json.loads(body) if entry["type"] == "file"]
        return [StoredObject(str(entry["path"]), int(entry["size"])) for entry in files]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PictureError(FailureCode.NETWORK, "the hub answers with no list of files") from error


def read_object(url: str, timeout_s: float, max_bytes: int) -> BinaryIO:
    """Return the bytes of a file; see `stores.read_object`."""
    file = io.BytesIO()
    _receive_file(url, file, timeout_s, max_bytes)
    file.seek(0)
    return file


def identify_object(url: str, timeout_s: float) -> str:  # noqa: ARG001 - as in stores.py
    """Return what tells a file from others; its versions are not told apart."""
    return url


def download_object(url: str, file: IO[bytes], timeout_s: float) -> None:
    """Write a file of any size into another; see `stores.download_object`."""
    _receive_file(url, file, timeout_s, None)
    file.flush()


def _split(url: str) -> tuple[str, str, str]:
    """Return the name of the data set, the revision and the path.

    Raises:
        PictureError: unsupported.
    """
    root, path = split_store_url(url)
    kind, _, name = root.removeprefix("hf://").strip("/").partition("/")
    repository, _, revision = name.partition("@")
    if kind != "datasets" or repository.count("/") != 1:
        raise PictureError(FailureCode.UNSUPPORTED, "is not hf://datasets/OWNER/NAME/PATH")
    return quote(repository), quote(revision or "main", safe=""), path


def _endpoint() -> str:
    return (Settings.from_environ().endpoint or HUB).rstrip("/")


def _receive_file(url: str, file: IO[bytes], timeout_s: float, max_bytes: int | None) -> None:
    repository, revision, path = _split(url)
    try:
        _receive(f"{_endpoint()}/datasets/{repository}/resolve/{revision}/{quote(path)}", file, timeout_s, max_bytes)
    except _NoEntryError:
        raise PictureError(FailureCode.NOT_FOUND, "no such file in the data set") from None


def _receive(address: str, file: IO[bytes], timeout_s: float, max_bytes: int | None) -> requests.Response:
    """Write a body into a file, with retries, which go on where it was cut; return the response, which is read.

    Args:
        address: of the body.
        file: empty.
        timeout_s: for each try, or for each chunk if there is no `max_bytes`.
        max_bytes: the largest body.

    Raises:
        PictureError: not_found for a data set, permission, too_large, network or timeout.
        _NoEntryError: there is no such file or folder.
    """
    backoff = Backoff(address, lambda _: None)
    try:
        while True:
            try:
                return _receive_rest(address, file, timeout_s, max_bytes)
            except TryLaterError as later:
                backoff.wait(later.reason)
            except requests.Timeout as error:
                raise PictureError(FailureCode.TIMEOUT, f"no answer within {timeout_s:g} s") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                backoff.wait(classify_error(error))
    except ModelError as error:
        raise PictureError(FailureCode.NETWORK, error.message) from error


def _receive_rest(address: str, file: IO[bytes], timeout_s: float, max_bytes: int | None) -> requests.Response:
    headers = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
    with watch(timeout_s) as watching, get(_get_session(), address, headers, watching) as response:
        _check_status(response)
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)
            file.truncate()
        for chunk in response.iter_content(_CHUNK_BYTES):
            file.write(chunk)
            if max_bytes is None:
                watching.restart(timeout_s)
            elif file.tell() > max_bytes:
                raise PictureError(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes")
        return response


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status == HTTPStatus.NOT_FOUND and response.headers.get("X-Error-Code") == "EntryNotFound":
        raise _NoEntryError
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        without = ", and no token was found" if find_hub_token() is None else ""
        raise PictureError(FailureCode.PERMISSION, f"the hub denies access, or has no such data set{without}")
    if status == HTTPStatus.NOT_FOUND:
        raise PictureError(FailureCode.NOT_FOUND, "the hub has no such data set or revision")
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise PictureError(FailureCode.NETWORK, f"the hub answers {status}")


class _HubToken(AuthBase):
    """Sends the token to the hub, and to no other host; the credentials in .netrc are not sent."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        is_hub = urlsplit(request.url or "")[:2] == urlsplit(_endpoint())[:2]
        if is_hub and (token := find_hub_token()):
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _get_session() -> requests.Session:
    """Return this thread's session, whose connections are used again."""
    if not hasattr(_thread, "session"):
        session = _thread.session = Session()
        watch_session(session)
        session.headers.update({"User-Agent": f"mfcli/{__version__}", "Accept-Encoding": "identity"})
        session.auth = _HubToken()
    found: requests.Session = _thread.session
    return found

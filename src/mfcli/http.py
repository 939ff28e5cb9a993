"""What a server says of a file, and how it is asked: redirects, refusals, patience.

Redirects are followed by hand, so that every hop gets its own host's credentials only and https stays https. Proxies,
certificate bundles and .netrc are requests' business.
"""

import email.utils
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from mfcli.errors import ModelError
from mfcli.results import Progress
from mfcli.version import __version__

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
MAX_TRIES = 5
"""Tries in a row that bring next to nothing before a source is given up."""
BACKOFF_S = 0.5
"""The first wait between tries; each further one is twice as long, with jitter."""
MAX_WAIT_S = 60.0

_MAX_REDIRECTS = 5
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINAL = re.compile("CERTIFICATE_VERIFY|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|NO_CERTIFICATE|X509|PEM")


class SourceError(ModelError):
    """This source cannot deliver the file; another one may."""


class UnreachableError(SourceError):
    """The server could not be reached, or not for long enough; what has arrived stays and is gone on with."""


class RefusedError(SourceError):
    """The server says no: 401, 403, 404 and their like."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{redact_url(url)} answers {status}")


@dataclass(frozen=True, slots=True)
class RemoteFileInfo:
    """What a server says of a file before any byte of it is read.

    Attributes:
        url: the address that was asked for.
        location: the address that serves the bytes; signed and short-lived behind a hub.
        etag: names this version of the file; None where the server has no name for it.
        sha256: its digest in hex, where the server tells it.
        size_bytes: its size, where the server tells it.
        commit: the repository's commit, where the server tells it.
    """

    url: str
    location: str
    etag: str | None
    sha256: str | None
    size_bytes: int | None
    commit: str | None


@dataclass(frozen=True, slots=True)
class RetryReason:
    """Why a try brought nothing, how long the server wants to be left alone, and whether it will be so again."""

    reason: str
    wait_s: float | None = None
    is_final: bool = False


class TryLaterError(Exception):
    """The server is busy."""

    def __init__(self, trouble: RetryReason) -> None:
        super().__init__(trouble.reason)
        self.trouble = trouble


class Backoff:
    """Waits between tries, longer each time, and gives up after MAX_TRIES of them."""

    def __init__(self, url: str, progress: Progress) -> None:
        self._url = url
        self._progress = progress
        self._tries = 0

    def restart(self) -> None:
        """Count from zero again: the last try brought something."""
        self._tries = 0

    def wait(self, trouble: RetryReason) -> None:
        """Wait after a try that failed.

        Raises:
            UnreachableError: it was the last one.
        """
        self._tries += 1
        if trouble.is_final:
            raise UnreachableError(
                f"{redact_url(self._url)} cannot be asked: {trouble.reason}", "see mf doctor, network"
            )
        if self._tries >= MAX_TRIES:
            raise UnreachableError(f"gave up on {redact_url(self._url)} after {self._tries} tries: {trouble.reason}")
        backoff_s = BACKOFF_S * 2 ** (self._tries - 1) * random.uniform(0.5, 1.5)
        wait_s = min(MAX_WAIT_S, max(backoff_s, trouble.wait_s or 0))
        self._progress(f"{urlsplit(self._url).hostname}: {trouble.reason}; trying again in {wait_s:.1f} s")
        time.sleep(wait_s)


def resolve_url(session: requests.Session, url: str, progress: Progress) -> RemoteFileInfo:
    """Ask a server what it has under an address, without fetching it.

    Raises:
        SourceError: the server says no, cannot be reached, or redirects from https to http.
    """
    patience = Backoff(url, progress)
    while True:
        try:
            return _resolve_once(session, url)
        except TryLaterError as later:
            patience.wait(later.trouble)
        except requests.RequestException as error:
            patience.wait(retry_reason(error))


def _resolve_once(session: requests.Session, url: str) -> RemoteFileInfo:
    location = url
    for _ in range(_MAX_REDIRECTS):
        response = _one_request(session, "HEAD", location, {})
        if response.status_code in (400, 403, 405, 501):  # HEAD is not to be had; the GET is not read
            response = _one_request(session, "GET", location, {})
        response.close()
        if response.status_code >= 400:
            raise RefusedError(url, response.status_code)
        if not response.is_redirect:
            return _remote(url, location, response.headers, response.headers.get("Content-Length"))
        location = redirect_target(location, response)
        if "X-Linked-Etag" in response.headers:  # the hub has said all; what is behind may be signed for GET alone
            return _remote(url, location, response.headers, response.headers.get("X-Linked-Size"))
    raise SourceError(f"{redact_url(url)} redirects without end")


def _remote(url: str, location: str, headers: Mapping[str, str], size: str | None) -> RemoteFileInfo:
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    linked = (headers.get("X-Linked-Etag") or "").strip('"').lower()
    return RemoteFileInfo(
        url=url,
        location=location,
        etag=etag or None,
        sha256=linked if _SHA256.fullmatch(linked) else None,
        size_bytes=parse_size(size) or None,
        commit=headers.get("X-Repo-Commit"),
    )


def get(session: requests.Session, url: str, headers: Mapping[str, str]) -> requests.Response:
    """GET, following redirects by hand: every hop gets its own host's credentials only, and https stays https."""
    for _ in range(_MAX_REDIRECTS):
        response = _one_request(session, "GET", url, headers)
        if not response.is_redirect:
            return response
        url = redirect_target(url, response)
        response.close()
    raise SourceError(f"{redact_url(url)} redirects without end")


def _one_request(session: requests.Session, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
    try:
        response = session.request(
            method,
            url,
            headers=headers,
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except ValueError as error:  # requests' InvalidURL and its kin, and what urllib3 and the codec of host names raise
        raise SourceError(f"{redact_url(url)} cannot be asked: {describe_malformed_url(url, error)}") from error
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise
        raise ModelError(*describe_missing_certificates(error)) from error
    if response.status_code in _TRY_AGAIN:
        response.close()
        trouble = RetryReason(f"the server answers {response.status_code}", _retry_after_s(response))
        raise TryLaterError(trouble)
    return response


def redirect_target(url: str, response: requests.Response) -> str:
    """Return where an answer redirects to.

    Raises:
        SourceError: that is no web address, or not https after https.
    """
    try:
        target = urljoin(url, response.headers["Location"])
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise SourceError(f"{redact_url(url)} redirects to what is no web address") from error
    if scheme not in ("http", "https"):
        raise SourceError(f"{redact_url(url)} redirects to {redact_url(target)}, which is no web address")
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise SourceError(f"{redact_url(url)} redirects from https to http, which is not followed")
    return target


def _retry_after_s(response: requests.Response) -> float | None:
    """The Retry-After header in seconds from now; it is a number or a date."""
    value = response.headers.get("Retry-After", "")
    if (seconds := parse_size(value)) is not None:
        return float(seconds)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def parse_size(value: str | None) -> int | None:
    """Return the number that a header says, None where it says none."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 19 else None


def get_strong_etag(response: requests.Response) -> str | None:
    """Return the entity tag that If-Range takes, None where there is only a weak one or none."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else None


def redact_url(url: str) -> str:
    """The address without credentials and signature."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return re.sub(r"//[^/?#]*@", "//", url.partition("?")[0])
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def describe_error(error: Exception) -> str:
    """Return what an exception of requests means, in a few words."""
    match error:
        case requests.exceptions.SSLError() if re.search("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", str(error)):
            return "the server does not speak https here; http:// may be meant"
        case requests.exceptions.SSLError() if "CERTIFICATE_VERIFY" in str(error):
            return "the server's certificate is not trusted (REQUESTS_CA_BUNDLE names another bundle)"
        case requests.exceptions.SSLError():
            return "no secure connection can be made (REQUESTS_CA_BUNDLE has to name a PEM file)"
        case requests.exceptions.ProxyError():
            return "the proxy cannot be reached (HTTPS_PROXY, HTTP_PROXY)"
        case requests.exceptions.Timeout():
            return "the server does not answer in time"
        case requests.exceptions.ChunkedEncodingError() | urllib3.exceptions.ProtocolError():
            return "the connection ended early"
        case urllib3.exceptions.TimeoutError():
            return "the server does not answer in time"
        case requests.exceptions.ConnectionError():
            return "the server does not answer in time" if "timed out" in str(error) else "no connection"
        case _:
            return f"{type(error).__name__}: {error}"


def retry_reason(error: Exception) -> RetryReason:
    """Return what an exception of requests means; certificates do not become right by asking again."""
    _, _, cause = str(error).rpartition("Caused by")  # before it is the address
    is_final = isinstance(error, requests.exceptions.SSLError) and bool(_FINAL.search(cause))
    return RetryReason(describe_error(error), is_final=is_final)


def describe_malformed_url(url: str, error: ValueError) -> str:
    """Return why an address cannot even be asked; the text of such an exception may hold a password."""
    if isinstance(error, requests.exceptions.InvalidSchema) and "dependencies for SOCKS" in str(error):
        return "a SOCKS proxy is set, and what speaks to one is not installed (pip install pysocks)"
    if isinstance(error, UnicodeEncodeError) and error.encoding.replace("-", "") == "latin1":
        return "the login for it, from the address or .netrc, has letters that cannot be sent"
    with suppress(ValueError):
        if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)):
            return "the address, or the proxy's (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), is malformed"
    return "the address is malformed"


def describe_missing_certificates(error: OSError) -> tuple[str, str]:
    """Return what is wrong where requests finds no certificates, which is no error of its own kind, and what to do."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if (bundle := os.environ.get(name)) and bundle in str(error):
            return f"{name} names {bundle}, which cannot be read", f"unset {name}, or let it name a PEM file"
    return str(error), "mf doctor shows the settings of the network"


class Session(requests.Session):
    """A session that never looks where an answer redirects to, as requests does even where it need not follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        """Nowhere: `redirect_target` says where."""
        return


@contextmanager
def open_session() -> Iterator[requests.Session]:
    """Open a session that says who asks, and wants the bytes as they are."""
    with Session() as session:
        session.headers.update({"User-Agent": f"mfcli/{__version__}", "Accept-Encoding": "identity"})
        yield session

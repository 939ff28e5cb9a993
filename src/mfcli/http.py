"""HTTP requests for files: metadata before the body, redirects, retries, and readable errors.

Redirects are followed here rather than by requests, so that each host receives only its own credentials and https
never becomes http. Proxies, certificate bundles and .netrc are left to requests.
"""

import email.utils
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from mfcli.connections import PrivateAddressError, UnknownHostError, Watch, watch, watch_session
from mfcli.errors import ModelError
from mfcli.results import Progress
from mfcli.version import __version__

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
HEADERS_TIMEOUT_S = 60.0
"""For the headers of a file, redirects included, however a server drips them."""
MAX_TRIES = 5
"""Consecutive tries without progress after which a source is given up."""
UNKNOWN_HOST_TRIES = 3
"""The same where the host's name does not resolve: mostly there is no network, and a person waits."""
BACKOFF_S = 0.5
"""The first wait between tries; each further one is twice as long, with jitter."""
MAX_WAIT_S = 60.0

_MAX_REDIRECTS = 5
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINAL_TLS_ERRORS = re.compile("CERTIFICATE_VERIFY|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|NO_CERTIFICATE|X509|PEM")


class SourceError(ModelError):
    """This source cannot deliver the file; another one may."""


class UnreachableError(SourceError):
    """The server was unreachable, or became so; the bytes received so far are kept and the download can be resumed."""


class RefusedError(SourceError):
    """The server refuses the request with a status such as 401, 403 or 404."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{redact_url(url)} returned HTTP {status}")


@dataclass(frozen=True, slots=True)
class RemoteFileInfo:
    """What the response headers say about a file; None for what the server does not send.

    Attributes:
        url: the address that was requested.
        location: the address that serves the bytes; on the Hugging Face hub it is signed and short-lived.
        etag: identifies this version of the file.
        sha256: its digest in hex.
        size_bytes: its size.
        commit: the repository's commit.
        public_only: whether its bytes have to come from a public address, as the first response did.
    """

    url: str
    location: str
    etag: str | None
    sha256: str | None
    size_bytes: int | None
    commit: str | None
    public_only: bool = False


@dataclass(frozen=True, slots=True)
class RetryReason:
    """Why a request failed.

    Attributes:
        message: the cause, in a few words.
        wait_s: the wait that the server asks for in Retry-After, None if it asks for none.
        is_final: whether a retry cannot succeed.
    """

    message: str
    wait_s: float | None = None
    is_final: bool = False


class TryLaterError(Exception):
    """The server is busy."""

    def __init__(self, reason: RetryReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Backoff:
    """Exponential backoff between tries, which gives up after MAX_TRIES."""

    def __init__(self, url: str, progress: Progress) -> None:
        self._url = url
        self._progress = progress
        self._tries = 0

    def restart(self) -> None:
        """Reset the count of tries, after one that made progress."""
        self._tries = 0

    def wait(self, reason: RetryReason, max_tries: int | None = None) -> None:
        """Wait after a failed try.

        Args:
            reason: why it failed.
            max_tries: the last try; by default MAX_TRIES.

        Raises:
            UnreachableError: it was the last one.
        """
        self._tries += 1
        if reason.is_final:
            raise UnreachableError(
                f"cannot request {redact_url(self._url)}: {reason.message}", "run mf doctor and see its network section"
            )
        if self._tries >= (max_tries or MAX_TRIES):
            raise UnreachableError(f"gave up on {redact_url(self._url)} after {self._tries} tries: {reason.message}")
        backoff_s = BACKOFF_S * 2 ** (self._tries - 1) * random.uniform(0.5, 1.5)
        wait_s = min(MAX_WAIT_S, max(backoff_s, reason.wait_s or 0))
        self._progress(f"{urlsplit(self._url).hostname}: {reason.message}; retrying in {wait_s:.1f} s")
        time.sleep(wait_s)


def resolve_url(session: requests.Session, url: str, progress: Progress, *, is_patient: bool = True) -> RemoteFileInfo:
    """Request the metadata of a file without its body, with retries.

    Args:
        session: sends the requests.
        url: the file's address.
        progress: called with a message before each retry.
        is_patient: whether to try again without a connection, and not only where the server is busy.

    Raises:
        SourceError: the server refuses, is unreachable, or redirects from https to http.
    """
    backoff = Backoff(url, progress)
    while True:
        try:
            with watch(HEADERS_TIMEOUT_S) as watching:
                return replace(_resolve_once(session, url, watching), public_only=watching.public_only)
        except TryLaterError as later:
            backoff.wait(later.reason)
        except requests.RequestException as error:
            reason = classify_error(error)
            max_tries = UNKNOWN_HOST_TRIES if isinstance(error.__cause__, UnknownHostError) else None
            backoff.wait(reason if is_patient else replace(reason, is_final=True), max_tries)


def _resolve_once(session: requests.Session, url: str, watching: Watch) -> RemoteFileInfo:
    location = url
    for _ in range(_MAX_REDIRECTS):
        response = _send(session, "HEAD", location, {})
        if response.status_code in (400, 403, 405, 501):  # no HEAD here: a GET whose body is not read
            response = _send(session, "GET", location, {})
        response.close()
        if response.status_code >= 400:
            raise RefusedError(url, response.status_code)
        if not response.is_redirect:
            return _parse_headers(url, location, response.headers, response.headers.get("Content-Length"))
        location = _follow(location, response, watching)
        if "X-Linked-Etag" in response.headers:  # all that is needed; the target may be signed for GET only
            return _parse_headers(url, location, response.headers, response.headers.get("X-Linked-Size"))
    raise SourceError(f"{redact_url(url)} redirects too often")


def _parse_headers(url: str, location: str, headers: Mapping[str, str], size: str | None) -> RemoteFileInfo:
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


def get(session: requests.Session, url: str, headers: Mapping[str, str], watching: Watch) -> requests.Response:
    """Send a GET request and follow redirects; the body is not read yet.

    Args:
        session: sends the requests.
        url: the address.
        headers: sent with each request.
        watching: watches the connection, until the body is read.

    Raises:
        ModelError: the certificate bundle cannot be read.
        SourceError: an address is malformed, or a redirect is not followed.
        TryLaterError: the server is busy.
    """
    for _ in range(_MAX_REDIRECTS):
        response = _send(session, "GET", url, headers)
        if not response.is_redirect:
            return response
        url = _follow(url, response, watching)
        response.close()
    raise SourceError(f"{redact_url(url)} redirects too often")


def _follow(url: str, response: requests.Response, watching: Watch) -> str:
    """Return where a response redirects to: from a public address to a private one is refused.

    Raises:
        SourceError: it is not followed.
    """
    target = redirect_target(url, response)
    watching.public_only = watching.public_only or watching.is_from_public(url)
    try:
        watching.allow(target)
    except PrivateAddressError as error:
        raise _private_address_error(url, error) from error
    return target


def _private_address_error(url: str, error: PrivateAddressError) -> SourceError:
    return SourceError(f"{redact_url(url)} redirects to {error}, a private address, which is not followed")


def _send(session: requests.Session, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
    try:
        response = session.request(
            method,
            url,
            headers=headers,
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )
    except PrivateAddressError as error:
        raise _private_address_error(url, error) from error
    except UnknownHostError as error:
        raise requests.ConnectionError("no connection") from error
    except ValueError as error:  # InvalidURL and similar of requests; LocationParseError; UnicodeError of host names
        raise SourceError(f"cannot request {redact_url(url)}: {describe_malformed_url(url, error)}") from error
    except OSError as error:
        if isinstance(error, requests.RequestException):
            raise
        raise ModelError(*describe_missing_certificates(error)) from error
    if response.status_code in _RETRY_STATUSES:
        response.close()
        reason = RetryReason(f"the server returned HTTP {response.status_code}", _parse_retry_after(response))
        raise TryLaterError(reason)
    return response


def redirect_target(url: str, response: requests.Response) -> str:
    """Return the address that a response redirects to.

    Raises:
        SourceError: it is not a web address, or not https although `url` is.
    """
    try:
        target = urljoin(url, response.headers["Location"])
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise SourceError(f"{redact_url(url)} redirects to a malformed address") from error
    if scheme not in ("http", "https"):
        raise SourceError(f"{redact_url(url)} redirects to {redact_url(target)}, which is not a web address")
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise SourceError(f"{redact_url(url)} redirects from https to http, which is not followed")
    return target


def _parse_retry_after(response: requests.Response) -> float | None:
    """Return the Retry-After header, a number or a date, in seconds from now."""
    value = response.headers.get("Retry-After", "")
    if (seconds := parse_size(value)) is not None:
        return float(seconds)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def parse_size(value: str | None) -> int | None:
    """Return the number in a header, None if it has none."""
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 19 else None


def get_strong_etag(response: requests.Response) -> str | None:
    """Return the entity tag for If-Range, None if the response has none or a weak one."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else None


def redact_url(url: str) -> str:
    """Return an address without its credentials and query, which may hold a signature."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return re.sub(r"//[^/?#]*@", "//", url.partition("?")[0])
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def describe_error(error: Exception) -> str:
    """Return the meaning of an exception of requests or urllib3 in a few words."""
    match error:
        case requests.exceptions.SSLError() if re.search("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", str(error)):
            return "the server does not speak https here; http:// may be meant"
        case requests.exceptions.SSLError() if "CERTIFICATE_VERIFY" in str(error):
            return "the server's certificate is not trusted (REQUESTS_CA_BUNDLE names another bundle)"
        case requests.exceptions.SSLError():
            return "no secure connection can be made (REQUESTS_CA_BUNDLE has to name a PEM file)"
        case requests.exceptions.ProxyError():
            return "the proxy cannot be reached (HTTPS_PROXY, HTTP_PROXY)"
        case requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError():
            return "the server does not answer in time"
        case requests.exceptions.ChunkedEncodingError() | urllib3.exceptions.ProtocolError():
            return "the connection ended early"
        case requests.exceptions.ConnectionError() if re.search("LineTooLong|got more than [0-9]+ headers", str(error)):
            return "the server's headers do not end"
        case requests.exceptions.ConnectionError() if "BadStatusLine" in str(error):
            return "the server's answer is not HTTP"
        case requests.exceptions.ConnectionError():
            return "the server does not answer in time" if "timed out" in str(error) else "no connection"
        case _:
            return f"{type(error).__name__}: {error}"


def classify_error(error: Exception) -> RetryReason:
    """Return the meaning of an exception of requests or urllib3; certificate errors are final."""
    _, _, cause = str(error).rpartition("Caused by")  # the address comes before it, and may match too
    is_final = isinstance(error, requests.exceptions.SSLError) and bool(_FINAL_TLS_ERRORS.search(cause))
    return RetryReason(describe_error(error), is_final=is_final)


def describe_malformed_url(url: str, error: ValueError) -> str:
    """Return why an address cannot be requested; the exception's own text may hold a password."""
    if isinstance(error, requests.exceptions.InvalidSchema) and "dependencies for SOCKS" in str(error):
        return "a SOCKS proxy is set, but PySocks is not installed (pip install pysocks)"
    if isinstance(error, UnicodeEncodeError) and error.encoding.replace("-", "") == "latin1":
        return "the credentials in the address or .netrc contain characters that cannot be sent"
    with suppress(ValueError):
        if requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)):
            return "the address, or the proxy's (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), is malformed"
    return "the address is malformed"


def describe_missing_certificates(error: OSError) -> tuple[str, str]:
    """Return message and hint for the bare OSError that requests raises if the certificate bundle cannot be read."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if (bundle := os.environ.get(name)) and bundle in str(error):
            return f"{name} names {bundle}, which cannot be read", f"unset {name}, or point it to a PEM file"
    return str(error), "mf doctor shows the network settings"


class Session(requests.Session):
    """A session that never looks at redirects: requests would parse their targets, malformed ones too."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        """Return None; callers use the function `redirect_target`."""
        return


@contextmanager
def open_session() -> Iterator[requests.Session]:
    """Open a session that identifies mfcli, asks for uncompressed bodies, and whose requests are watched."""
    with Session() as session:
        watch_session(session)
        session.headers.update({"User-Agent": f"mfcli/{__version__}", "Accept-Encoding": "identity"})
        yield session

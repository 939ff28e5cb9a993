"""Fetches a picture from a URL, with limits on time and size, and without following redirects into private networks.

The user may name any host. A redirect may lead to a private, loopback or link-local address only on that same host, and
no longer once a response came from the public internet. The connection is made to the address that was checked, because
the name may resolve to another one by then. Behind a proxy, which resolves names itself, only names and literal
addresses can be checked. (A DNS look-up is the one thing that the time-out cannot interrupt.)
"""

import contextlib
import http.cookiejar
import io
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from mfcli.errors import FailureCode, ModelError, PictureError
from mfcli.http import (
    Session,
    describe_error,
    describe_malformed_url,
    describe_missing_certificates,
    parse_size,
    redact_url,
    redirect_target,
)
from mfcli.version import __version__

_MAX_REDIRECTS = 5
_CHUNK_BYTES = 2**16
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head)", re.IGNORECASE)
_HEAD_BYTES = 512
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_DESCRIBABLE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
"""Exceptions that can be described without their text, which may contain the URL and its password."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_thread = threading.local()
"""`fetch`: this thread's current fetch; `sessions`: its sessions, by whether they connect to public addresses only."""


class _PrivateAddressError(Exception):
    """A redirect leads to a host whose address is not public."""


class _UnknownHostError(Exception):
    """A host name that does not resolve."""


class _Fetch:
    """The state of one fetch: its deadline, its current connection, and whether that must be to a public address."""

    def __init__(self, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self.expired = False
        self.public_only = False
        self.connection: HTTPConnection | None = None
        self.socket: socket.socket | None = None

    @property
    def left_s(self) -> float:
        """The time that is left; never zero, which would mean no time-out."""
        return max(0.001, self.deadline - time.monotonic())

    def expire(self) -> None:
        """Shut the connection down, whatever its thread waits for; called from another thread."""
        self.expired = True
        if self.socket is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # the method of a TLS socket is not thread-safe


@contextmanager
def _watch_fetch(timeout_s: float) -> Iterator[_Fetch]:
    """Enforce the time-out of a fetch: those of sockets start again with every byte that a slow server sends."""
    timeout_s = min(timeout_s, threading.TIMEOUT_MAX)  # sockets cannot wait longer either
    fetch = _Fetch(timeout_s)
    timer = threading.Timer(timeout_s, fetch.expire)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as error:  # a limit on processes
        raise PictureError(FailureCode.NETWORK, "cannot start the thread that enforces the time-out") from error
    _thread.fetch = fetch
    try:
        yield fetch
    finally:
        timer.cancel()
        _thread.fetch = None


class _WatchedConnection(HTTPConnection):
    """A connection to an address that was checked, which the thread's fetch can shut down."""

    is_public: bool | None = None
    """Whether it leads to a public address; None where a proxy decides."""

    def request(self, *arguments: Any, **options: Any) -> None:
        _thread.fetch.connection, _thread.fetch.socket = self, self.sock
        super().request(*arguments, **options)
        _thread.fetch.socket = self.sock  # the connection drops it if the server will close it
        if _thread.fetch.expired:  # between two connections
            raise TimeoutError

    def _new_conn(self) -> socket.socket:
        if self.proxy is not None:
            return super()._new_conn()
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _UnknownHostError(self.host) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if _thread.fetch.public_only and not all(map(_is_public, addresses)):
            raise _PrivateAddressError(self.host)
        return self._connect(addresses)

    def _connect(self, addresses: list[str]) -> socket.socket:
        error: OSError | None = None
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                connected = urllib3.util.connection.create_connection(
                    (address, self.port),
                    _thread.fetch.left_s / left,  # an address that never answers leaves time for the others
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as refused:
                error = refused
                continue
            self.is_public, _thread.fetch.socket = _is_public(address), connected
            return connected
        if isinstance(error, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from error
        raise urllib3.exceptions.NewConnectionError(self, "no connection") from error


class _WatchedTlsConnection(_WatchedConnection, HTTPSConnection):
    """The same over TLS; the certificate is checked against the host's name."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _WatchedConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTlsConnection


class _Adapter(HTTPAdapter):
    """Makes requests use these connections."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager


def _get_session(public_only: bool) -> requests.Session:
    """Return this thread's session; fetches from public addresses only have their own session."""
    sessions = _thread.__dict__.setdefault("sessions", {})
    if public_only not in sessions:
        session = sessions[public_only] = Session()
        session.headers.update({"User-Agent": f"mfcli/{__version__}", "Accept": "image/*,*/*;q=0.5"})
        session.headers["Accept-Encoding"] = "identity"
        session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter())
    found: requests.Session = sessions[public_only]
    return found


def open_url(url: str, timeout_s: float, max_bytes: int) -> io.BytesIO:
    """Return the body of the response to a GET request.

    Args:
        url: http or https; user and password in it are used, and never shown.
        timeout_s: for the whole fetch, including redirects.
        max_bytes: the largest body that is read.

    Raises:
        PictureError: network, timeout, too_large, or unsupported for a web page or a malformed URL.
    """
    with _watch_fetch(timeout_s) as fetch:
        try:
            with _follow_redirects(url, fetch) as response:
                return _read_body(response, max_bytes)
        except PictureError:
            raise
        except Exception as error:
            if fetch.expired or isinstance(error, requests.Timeout):
                raise PictureError(FailureCode.TIMEOUT, f"no answer within {timeout_s:g} s") from error
            raise _to_picture_error(url, error) from error


def _to_picture_error(url: str, error: Exception) -> PictureError:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 20:
        chain.append(cause)
    for cause in chain:
        match cause:
            case _PrivateAddressError():
                return PictureError(FailureCode.NETWORK, f"redirects to {cause}, a private address; not followed")
            case ModelError():
                return PictureError(FailureCode.NETWORK, cause.message)
            case _UnknownHostError():
                return PictureError(FailureCode.NETWORK, f"host {cause} is not known")
    if isinstance(error, requests.exceptions.InvalidHeader):
        return PictureError(FailureCode.NETWORK, "the server's answer is malformed")
    if isinstance(error, ValueError):
        reason = describe_malformed_url(url, error)
        code = FailureCode.NETWORK if "proxy" in reason else FailureCode.UNSUPPORTED
        return PictureError(code, reason)
    if isinstance(error, _DESCRIBABLE):
        return PictureError(FailureCode.NETWORK, describe_error(error))
    if type(error) is OSError:  # not one of requests' own
        return PictureError(FailureCode.NETWORK, describe_missing_certificates(error)[0])
    return PictureError(FailureCode.NETWORK, type(error).__name__)


def _follow_redirects(url: str, fetch: _Fetch) -> requests.Response:
    """Send the request and follow redirects; each is checked, and gets the credentials of its own host only."""
    first_host = urlsplit(url).hostname
    for _ in range(_MAX_REDIRECTS + 1):
        response = _get_session(fetch.public_only).get(
            url, stream=True, allow_redirects=False, timeout=(fetch.left_s, fetch.left_s)
        )
        if not response.is_redirect:
            return response
        response.close()
        is_from_public = _is_from_public(url, fetch)
        url = redirect_target(url, response)
        host = urlsplit(url).hostname or ""
        fetch.public_only = fetch.public_only or is_from_public or host != first_host
        if fetch.public_only and _is_private_name(host):
            raise _PrivateAddressError(host)
    raise PictureError(FailureCode.NETWORK, f"{redact_url(url)} redirects more than {_MAX_REDIRECTS} times")


def _is_from_public(url: str, fetch: _Fetch) -> bool:
    """Whether the last response came from the public internet; behind a proxy, judged by the name of the host."""
    known = getattr(fetch.connection, "is_public", None)
    return not _is_private_name(urlsplit(url).hostname or "") if known is None else bool(known)


def _is_private_name(host: str) -> bool:
    """Whether a host is a literal address that is not public, or a name in the local machine or network."""
    name = host.rstrip(".").lower()
    try:
        return not _is_public(name)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 mean 127.0.0.1
        return not _is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        return "." not in name or name.endswith(_LOCAL_NAMES)


def _is_public(address: str) -> bool:
    """Whether an IP address is public, and an IPv4 address embedded in it, too."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _read_body(response: requests.Response, max_bytes: int) -> io.BytesIO:
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION):
        raise PictureError(FailureCode.NETWORK, f"the server answers {_describe_status(response.status_code)}")
    too_large = PictureError(FailureCode.TOO_LARGE, f"the server sends over {max_bytes} bytes")
    if (parse_size(response.headers.get("Content-Length")) or 0) > max_bytes:
        raise too_large
    data = io.BytesIO()
    for chunk in response.iter_content(_CHUNK_BYTES):
        if not data.tell():
            _refuse_web_page(response, chunk[:_HEAD_BYTES])
        data.write(chunk)
        if data.tell() > max_bytes:
            raise too_large
    if _thread.fetch.expired:  # without a length, a body that was shut down looks complete
        raise TimeoutError
    data.seek(0)
    return data


def _describe_status(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{code} {HTTPStatus(code).phrase}"
    return str(code)


def _refuse_web_page(response: requests.Response, head: bytes) -> None:
    """Refuse a web page before the whole body is read; a picture with a wrong Content-Type is accepted."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    says_page = kind in ("text/html", "application/xhtml+xml") and head.lstrip().startswith(b"<")
    if says_page or _PAGE.match(head):
        labelled = "" if says_page or not kind else f" (labelled {kind})"
        raise PictureError(FailureCode.UNSUPPORTED, f"the server sent a web page{labelled}, not a picture")

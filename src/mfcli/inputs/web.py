"""One picture from the web: bounded in time and size, and never from where a stranger points into this network.

The user may name any host. A redirect may lead to a private, loopback or link-local address only on that same host, and
not once an answer came from the public internet: its connection goes to an address that was checked, not to a name that
may mean another one by then. Behind a proxy, which looks names up itself, only names and literal addresses can be
checked. (The look-up of a name is the one thing that a time-out cannot break off.)
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
_SHOWN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)
"""Exceptions whose meaning can be told without their text, which may hold the address and its password."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_thread = threading.local()
"""`fetch`: the one under way in this thread; `sessions`: its own, by whether they connect to public addresses only."""


class _PrivateAddressError(Exception):
    """A redirect leads to this host, whose address is not public."""


class _UnknownHostError(Exception):
    """This host has no address."""


class _Fetch:
    """One URL under way: its deadline, and what its connections must and did turn out to be."""

    def __init__(self, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self.expired = False
        self.public_only = False
        self.connection: HTTPConnection | None = None
        self.socket: socket.socket | None = None

    @property
    def left_s(self) -> float:
        """The time that is left, never zero, which would mean without end."""
        return max(0.001, self.deadline - time.monotonic())

    def expire(self) -> None:
        """Break the connection off, whatever its thread waits for; called from another thread."""
        self.expired = True
        if self.socket is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # not TLS's own, which is the other thread's


@contextmanager
def _fetching(timeout_s: float) -> Iterator[_Fetch]:
    """Watch a fetch: the time-outs of sockets begin anew with every byte that a slow server sends."""
    timeout_s = min(timeout_s, threading.TIMEOUT_MAX)  # sockets cannot wait longer either
    fetch = _Fetch(timeout_s)
    timer = threading.Timer(timeout_s, fetch.expire)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as error:  # a limit on processes
        raise PictureError(FailureCode.NETWORK, "no thread can be started that watches its time") from error
    _thread.fetch = fetch
    try:
        yield fetch
    finally:
        timer.cancel()
        _thread.fetch = None


class _Watched(HTTPConnection):
    """A connection that the thread's fetch knows of, to an address that was checked."""

    is_public: bool | None = None
    """Whether it leads to a public address; None where a proxy decides."""

    def request(self, *arguments: Any, **options: Any) -> None:
        _thread.fetch.connection, _thread.fetch.socket = self, self.sock
        super().request(*arguments, **options)
        _thread.fetch.socket = self.sock  # the connection lets go of it where the server will close it
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
        return self._connected(addresses)

    def _connected(self, addresses: list[str]) -> socket.socket:
        error: OSError | None = None
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                connected = urllib3.util.connection.create_connection(
                    (address, self.port),
                    _thread.fetch.left_s / left,  # so that one that never answers leaves time for the others
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


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS; the certificate is checked against the name."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


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


def _session(public_only: bool) -> requests.Session:
    """This thread's session; a connection that was made to any address is never used again for public ones only."""
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
    """Return the body that an address serves.

    Args:
        url: http or https; user and password in it are used, and never shown.
        timeout_s: for all of it, redirects included.
        max_bytes: the largest body that is read.

    Raises:
        PictureError: network, timeout, too_large, or unsupported for what is a web page, or no address.
    """
    with _fetching(timeout_s) as fetching:
        try:
            with _followed(url, fetching) as response:
                return _body(response, max_bytes)
        except PictureError:
            raise
        except Exception as error:
            if fetching.expired or isinstance(error, requests.Timeout):
                raise PictureError(FailureCode.TIMEOUT, f"no answer within {timeout_s:g} s") from error
            raise _picture_error(url, error) from error


def _picture_error(url: str, error: Exception) -> PictureError:
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
    if isinstance(error, _SHOWN):
        return PictureError(FailureCode.NETWORK, describe_error(error))
    if type(error) is OSError:  # no kind of requests' own
        return PictureError(FailureCode.NETWORK, describe_missing_certificates(error)[0])
    return PictureError(FailureCode.NETWORK, type(error).__name__)


def _followed(url: str, fetching: _Fetch) -> requests.Response:
    """Ask, and follow redirects by hand: each one is checked, and gets its own host's credentials only."""
    named = urlsplit(url).hostname
    for _ in range(_MAX_REDIRECTS + 1):
        response = _session(fetching.public_only).get(
            url, stream=True, allow_redirects=False, timeout=(fetching.left_s, fetching.left_s)
        )
        if not response.is_redirect:
            return response
        response.close()
        was_public = _was_public(url, fetching)
        url = redirect_target(url, response)
        host = urlsplit(url).hostname or ""
        fetching.public_only = fetching.public_only or was_public or host != named
        if fetching.public_only and _is_private_name(host):
            raise _PrivateAddressError(host)
    raise PictureError(FailureCode.NETWORK, f"{redact_url(url)} redirects more than {_MAX_REDIRECTS} times")


def _was_public(url: str, fetching: _Fetch) -> bool:
    """Whether the last answer came from the public internet, as far as can be told behind a proxy."""
    known = getattr(fetching.connection, "is_public", None)
    return not _is_private_name(urlsplit(url).hostname or "") if known is None else bool(known)


def _is_private_name(host: str) -> bool:
    """Whether a host is a literal address that is not public, or a name of this machine or this network."""
    name = host.rstrip(".").lower()
    try:
        return not _is_public(name)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 are 127.0.0.1 too
        return not _is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        return "." not in name or name.endswith(_LOCAL_NAMES)


def _is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also when it carries another one inside."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _body(response: requests.Response, max_bytes: int) -> io.BytesIO:
    if response.status_code not in (HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION):
        raise PictureError(FailureCode.NETWORK, f"the server answers {_status(response.status_code)}")
    too_large = PictureError(FailureCode.TOO_LARGE, f"the server sends over {max_bytes} bytes")
    if (parse_size(response.headers.get("Content-Length")) or 0) > max_bytes:
        raise too_large
    data = io.BytesIO()
    for chunk in response.iter_content(_CHUNK_BYTES):
        if not data.tell():
            _check_no_page(response, chunk[:_HEAD_BYTES])
        data.write(chunk)
        if data.tell() > max_bytes:
            raise too_large
    if _thread.fetch.expired:  # a body without a length ends where the watch has broken it off
        raise TimeoutError
    data.seek(0)
    return data


def _status(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"{code} {HTTPStatus(code).phrase}"
    return str(code)


def _check_no_page(response: requests.Response, head: bytes) -> None:
    """Refuse a web page before all of it is read; a picture under a wrong name is what its bytes say."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    says_page = kind in ("text/html", "application/xhtml+xml") and head.lstrip().startswith(b"<")
    if says_page or _PAGE.match(head):
        labelled = "" if says_page or not kind else f" (called {kind})"
        raise PictureError(FailureCode.UNSUPPORTED, f"the server sent a web page{labelled}, not a picture")

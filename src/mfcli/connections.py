"""Connections with a deadline for all that a server sends, and to public addresses alone where that is asked for.

The time-outs of sockets start again with every byte: a server that drips its headers, or repeats `100 Continue`, would
be waited for forever. A `Watch` shuts the connection down, whatever its thread waits for. (A DNS look-up is the one
thing that it cannot interrupt.) The connection is made to the address that was checked, because the name may resolve
to another one by then. Behind a proxy, which resolves names itself, only names and literal addresses can be checked.
"""

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from mfcli.errors import threads_error

_LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_thread = threading.local()
"""`watch`: what this thread's connections are watched by."""


class PrivateAddressError(Exception):
    """A redirect leads to a host whose address is not public."""


class UnknownHostError(Exception):
    """A host name that does not resolve."""


class Watch:
    """A deadline, the connection that it is for, and whether that must be to a public address.

    Attributes:
        expired: whether the deadline has passed.
        public_only: whether only public addresses are connected to.
        connection: the current connection, None before the first one.
        socket: its socket.
    """

    def __init__(self, timeout_s: float) -> None:
        self.expired = False
        self.public_only = False
        self.connection: HTTPConnection | None = None
        self.socket: socket.socket | None = None
        self._done = threading.Event()
        self.restart(timeout_s)

    def restart(self, timeout_s: float) -> None:
        """Move the deadline."""
        self._deadline = time.monotonic() + min(timeout_s, threading.TIMEOUT_MAX)  # sockets cannot wait longer either

    @property
    def left_s(self) -> float:
        """The time that is left; never zero, which would mean no time-out."""
        return max(0.001, self._deadline - time.monotonic())

    def is_from_public(self, url: str) -> bool:
        """Whether the last response came from the public internet; behind a proxy, judged by the name of the host."""
        known = getattr(self.connection, "is_public", None)
        return not is_private_name(urlsplit(url).hostname or "") if known is None else bool(known)

    def allow(self, url: str) -> None:
        """Check an address that a response redirects to, as far as its name says.

        Raises:
            PrivateAddressError: only public addresses are connected to.
        """
        host = urlsplit(url).hostname or ""
        if self.public_only and is_private_name(host):
            raise PrivateAddressError(host)

    def run(self) -> None:
        """Wait for the end or the deadline, and then shut the connection down; called in a thread of its own."""
        while (left_s := self._deadline - time.monotonic()) > 0:
            if self._done.wait(left_s):
                return
        self.expired = True
        if self.socket is not None:
            with contextlib.suppress(OSError):  # it may be closed already
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # the method of a TLS socket is not thread-safe

    def end(self) -> None:
        """End the wait."""
        self._done.set()


@contextlib.contextmanager
def watch(timeout_s: float) -> Iterator[Watch]:
    """Watch the connections that this thread makes in the body with a session of `watch_session`.

    Raises:
        EngineError: the thread of the deadline cannot be started.
        requests.Timeout: the deadline has passed.
    """
    outer, watching = getattr(_thread, "watch", None), Watch(timeout_s)
    try:
        threading.Thread(target=watching.run, daemon=True, name="mf-deadline").start()
    except RuntimeError as error:  # a limit on processes
        raise threads_error(1, error) from error
    _thread.watch = watching
    try:
        yield watching
    except (OSError, urllib3.exceptions.HTTPError) as error:  # what a connection raises that was shut down
        if not watching.expired:
            raise
        raise requests.Timeout("timed out") from error
    finally:
        watching.end()
        _thread.watch = outer
    if watching.expired:  # headers that were cut off, or a body without a length, look complete
        raise requests.Timeout("timed out")


class _WatchedConnection(HTTPConnection):
    """A connection to an address that was checked, which the thread's watch can shut down."""

    is_public: bool | None = None
    """Whether it leads to a public address; None where a proxy decides."""

    def request(self, *arguments: Any, **options: Any) -> None:
        _thread.watch.connection, _thread.watch.socket = self, self.sock
        super().request(*arguments, **options)
        _thread.watch.socket = self.sock  # the connection drops it if the server will close it
        if _thread.watch.expired:  # between two connections
            raise TimeoutError

    def _new_conn(self) -> socket.socket:
        if self.proxy is not None:
            return super()._new_conn()
        try:
            self.host.encode("idna")
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise urllib3.exceptions.LocationParseError(self.host) from error
        except OSError as error:
            raise UnknownHostError(self.host) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if _thread.watch.public_only and not all(map(is_public, addresses)):
            raise PrivateAddressError(self.host)
        return self._connect(addresses)

    def _connect(self, addresses: list[str]) -> socket.socket:
        error: OSError | None = None
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            left_s = _thread.watch.left_s / left  # an address that never answers leaves time for the others
            try:
                connected = urllib3.util.connection.create_connection(
                    (address, self.port),
                    left_s if self.timeout is None else min(left_s, self.timeout),
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as refused:
                error = refused
                continue
            self.is_public, _thread.watch.socket = is_public(address), connected
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


def watch_session(session: requests.Session) -> None:
    """Make a session use connections that `watch` watches; its requests are then made within one alone."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())


def is_private_name(host: str) -> bool:
    """Whether a host is a literal address that is not public, or a name in the local machine or network."""
    name = host.rstrip(".").lower()
    try:
        return not is_public(name)
    except ValueError:
        pass
    try:  # 127.1, 0x7f000001 and 2130706433 mean 127.0.0.1
        return not is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except OSError:
        return "." not in name or name.endswith(_LOCAL_NAMES)


def is_public(address: str) -> bool:
    """Whether an IP address is public, and an IPv4 address embedded in it, too."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast

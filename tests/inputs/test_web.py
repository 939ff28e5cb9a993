"""Fetching pictures from servers on loopback, well-behaved and hostile."""

import _socket
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import only_threads
from mfcli import connections
from mfcli.errors import FailureCode, PictureError
from mfcli.inputs import web
from mfcli.inputs.web import open_url

PICTURE = b"\x89PNG, let us say" * 100
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server with a programmed response for each path, which records the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server.asked.append((self.path, dict(self.headers)))
                with contextlib.suppress(OSError):
                    server.answers.get(self.path, lambda _: self.send_error(404))(self)  # type: ignore[no-untyped-call]

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.http.server_port}{path}"

    def says(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content_Length": str(len(body)), **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.says("/a.jpg", body=PICTURE, Content_Type="image/png")
    yield server
    server.http.shutdown()
    server.http.server_close()
    web._thread.__dict__.clear()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by host name; each look-up takes the next one, and repeats the last."""
    known: dict[str, list[str]] = {}
    look_up = socket.getaddrinfo

    def resolve(host: str, port: int, *arguments: object, **options: object) -> object:
        if host in known:
            addresses = known[host]
            address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        if host == "127.0.0.2":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        return look_up(host, port, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def failure(url: str, timeout_s: float = 5, max_bytes: int = 10**6) -> PictureError:
    with pytest.raises(PictureError) as caught:
        open_url(url, timeout_s, max_bytes)
    return caught.value


def test_a_picture(server: Server) -> None:
    assert open_url(server.url(), 5, 10**6).read() == PICTURE
    assert open_url(server.url(), 5, len(PICTURE)).read() == PICTURE
    assert server.connections == 1  # reused
    headers = server.asked[0][1]
    assert headers["User-Agent"].startswith("mfcli/")


@pytest.mark.parametrize(
    ("status", "text"),
    [(404, "404 Not Found"), (500, "500 Internal"), (304, "304"), (799, "799"), (206, "206"), (204, "204")],
)
def test_status_codes_other_than_200(server: Server, status: int, text: str) -> None:
    server.says("/a.jpg", status)
    error = failure(server.url())
    assert error.code is FailureCode.NETWORK
    assert text in error.message


def test_a_web_page(server: Server) -> None:
    page = b"<!DOCTYPE html><html>no picture</html>"
    for body, kind, called in [
        (page, "text/html; charset=utf-8", ""),
        (b"\n" + page, "image/jpeg", " (labelled image/jpeg)"),
        (b"<p>", "text/html", ""),
    ]:
        server.says("/a.jpg", body=body, Content_Type=kind)
        error = failure(server.url())
        assert error.code is FailureCode.UNSUPPORTED
        assert error.message == f"the server sent a web page{called}, not a picture"
    server.says("/a.jpg", body=PICTURE, Content_Type="text/html")
    assert open_url(server.url(), 5, 10**6).read() == PICTURE


def test_too_large(server: Server) -> None:
    assert failure(server.url(), max_bytes=len(PICTURE) - 1).code is FailureCode.TOO_LARGE

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))

    server.answers["/endless"] = endless
    assert failure(server.url("/endless")).code is FailureCode.TOO_LARGE
    bomb = gzip.compress(bytes(2**24))
    server.says("/bomb", body=bomb, Content_Encoding="gzip")
    assert failure(server.url("/bomb")).code is FailureCode.TOO_LARGE


def test_a_truncated_body(server: Server) -> None:
    server.says("/a.jpg", body=b"short", Content_Length="1000", Connection="close")
    server.answers["/a.jpg"] = closing(server.answers["/a.jpg"])
    error = failure(server.url())
    assert (error.code, error.message) == (FailureCode.NETWORK, "the connection ended early")


def closing(answer: Answer) -> Answer:
    def answer_and_close(handler: BaseHTTPRequestHandler) -> None:
        answer(handler)
        handler.close_connection = True

    return answer_and_close


def drip_body(handler: BaseHTTPRequestHandler, **headers: str) -> None:
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def drip_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        drip_body,
        lambda handler: drip_body(handler, **{"Content-Length": "1000"}),
        lambda handler: drip_body(handler, **{"Content-Length": "1000", "Connection": "close"}),
        lambda handler: drip_body(handler, Connection="close"),
        drip_head,
        lambda _: time.sleep(3),
    ],
)
def test_a_slow_server_times_out(server: Server, answer: Answer) -> None:
    server.answers["/slow"] = answer
    for _ in range(2):
        start = time.monotonic()
        error = failure(server.url("/slow"), timeout_s=0.3)
        assert (error.code, error.message) == (FailureCode.TIMEOUT, "no answer within 0.3 s")
        assert time.monotonic() - start < 1.5
    assert open_url(server.url(), 5, 10**6).read() == PICTURE


def test_redirects_share_one_timeout(server: Server) -> None:
    def slow_redirect(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        server.answers["/302"](handler)

    server.says("/302", 302, Location="/r")
    server.answers["/r"] = slow_redirect
    assert failure(server.url("/r"), timeout_s=0.5).code is FailureCode.TIMEOUT


def test_a_server_without_tls(server: Server) -> None:
    error = failure(server.url().replace("http://", "https://"))
    assert error.code is FailureCode.NETWORK
    assert "http:// may be meant" in error.message
    assert "certificate" not in error.message


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", "certificate is not trusted"),
        ("[X509] no certificate or crl found", "has to name a PEM file"),
    ],
)
def test_certificate_errors(cause: str, said: str) -> None:
    import requests

    from mfcli.http import describe_error

    assert said in describe_error(requests.exceptions.SSLError(cause))


def test_a_refused_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = failure(f"http://user:secret@127.0.0.1:{port}/a.jpg?token=t0ken")
    assert (error.code, error.message) == (FailureCode.NETWORK, "no connection")


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("http://user:secret@nowhere.example/a.jpg")
    assert (error.code, error.message) == (FailureCode.NETWORK, "host nowhere.example is not known")


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://x:y/", "http://u:secret@:80/", "http://*.example:99999/", "http://a\udce9/"]
)
def test_malformed_urls(url: str) -> None:
    error = failure(url)
    assert error.code in (FailureCode.UNSUPPORTED, FailureCode.NETWORK)
    assert "secret" not in error.message


def test_credentials(server: Server) -> None:
    server.says("/r", 302, Location="/a.jpg")
    url = server.url("/r").replace("//", "//user:secret@")
    assert open_url(url, 5, 10**6).read() == PICTURE
    assert [headers["Authorization"] for _, headers in server.asked] == ["Basic dXNlcjpzZWNyZXQ="] * 2
    server.says("/r", 302, Location=server.url())
    assert open_url(url, 5, 10**6).read() == PICTURE
    assert "Authorization" not in server.asked[-1][1]
    server.says("/r", 401)
    assert "secret" not in failure(url).message


def test_wrong_settings_are_not_blamed_on_the_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
    assert failure("https://127.0.0.1:9/a.jpg").message == (
        "REQUESTS_CA_BUNDLE names /nonexistent/ca.pem, which cannot be read"
    )
    monkeypatch.setenv("HTTP_PROXY", "http://joe:secret@[bad")
    error = failure(server.url())
    assert error.code is FailureCode.NETWORK
    assert error.message == "the address, or the proxy's (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY), is malformed"


def test_cookies_are_not_kept(server: Server) -> None:
    server.says("/a.jpg", body=PICTURE, Set_Cookie="a=b")
    for _ in range(2):
        open_url(server.url(), 5, 10**6)
    assert "Cookie" not in server.asked[-1][1]


def test_redirects(server: Server) -> None:
    server.says("/r", 301, Location="/r2")
    server.says("/r2", 307, Location=server.url())
    assert open_url(server.url("/r"), 5, 10**6).read() == PICTURE
    server.says("/loop", 302, Location="/loop")
    assert "redirects more than 5 times" in failure(server.url("/loop")).message
    server.says("/file", 302, Location="file:///etc/passwd")
    error = failure(server.url("/file"))
    assert error.code is FailureCode.NETWORK
    assert "not a web address" in error.message
    server.says("/odd", 302, Location="http://[")
    assert failure(server.url("/odd")).code in (FailureCode.UNSUPPORTED, FailureCode.NETWORK)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as a public address; 127.0.0.2, also this machine, does not."""
    real = connections.is_public
    monkeypatch.setattr(connections, "is_public", lambda address: address == "127.0.0.1" or real(address))


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize(
    "host", ["127.0.0.2", "localhost", "0x7f.2", "2130706434", "[::1]", "10.1.2.3", "169.254.169.254", "inside"]
)
def test_redirects_to_private_addresses_are_refused(server: Server, hosts: dict[str, list[str]], host: str) -> None:
    hosts |= {"public.example": ["127.0.0.1"], "localhost": ["127.0.0.2"]}
    server.says("/r", 302, Location=server.url("/secret", host))
    error = failure(server.url("/r", "public.example"))
    assert error.code is FailureCode.NETWORK
    assert "a private address; not followed" in error.message
    assert [path for path, _ in server.asked] == ["/r"]


@pytest.mark.usefixtures("public")
def test_dns_rebinding_is_refused(server: Server, hosts: dict[str, list[str]]) -> None:
    """A name may resolve to another address in the redirect; what counts is the address that is connected to."""
    hosts["other.example"] = ["127.0.0.2"]
    hosts["public.example"] = ["127.0.0.1"]
    server.says("/r", 302, Location=server.url("/secret", "other.example"))
    assert "other.example, a private" in failure(server.url("/r", "public.example")).message
    hosts["shifty.example"] = ["127.0.0.1", "127.0.0.2"]
    server.says("/r", 302, Location=server.url("/secret", "shifty.example"))
    assert "shifty.example, a private" in failure(server.url("/r", "shifty.example")).message
    assert [path for path, _ in server.asked] == ["/r", "/r"]


def test_a_private_server_may_redirect_only_to_itself(server: Server, hosts: dict[str, list[str]]) -> None:
    hosts["inside.example"] = ["127.0.0.1"]
    server.says("/r", 302, Location=server.url())
    assert open_url(server.url("/r"), 5, 10**6).read() == PICTURE
    for host in ("localhost", "inside.example", "169.254.169.254"):
        server.says("/r", 302, Location=server.url("/a.jpg", host))
        assert f"{host}, a private address" in failure(server.url("/r")).message


@pytest.mark.usefixtures("public")
def test_public_redirects_are_followed(server: Server, hosts: dict[str, list[str]]) -> None:
    hosts |= {"public.example": ["127.0.0.1"], "cdn.example": ["127.0.0.1"]}
    server.says("/r", 302, Location=server.url("/a.jpg", "cdn.example"))
    assert open_url(server.url("/r", "public.example"), 5, 10**6).read() == PICTURE


@pytest.mark.usefixtures("public")
def test_a_kept_connection_to_a_private_address_is_not_reused(server: Server, hosts: dict[str, list[str]]) -> None:
    inside = ThreadingHTTPServer(("127.0.0.2", server.http.server_port), server.http.RequestHandlerClass)
    inside.daemon_threads = True
    threading.Thread(target=inside.serve_forever, args=(0.01,), daemon=True).start()
    hosts |= {"evil.example": ["127.0.0.2"], "public.example": ["127.0.0.1"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_on_loopback)
        assert open_url(server.url("/a.jpg", "evil.example"), 5, 10**6).read() == PICTURE  # named by the user
        server.says("/r", 302, Location=server.url("/a.jpg", "evil.example"))
        assert "evil.example, a private" in failure(server.url("/r", "public.example")).message
    inside.shutdown()
    inside.server_close()


def connect_on_loopback(self: socket.socket, address: tuple[str, int]) -> None:
    """Allow 127.0.0.2, which the network guard of the tests refuses."""
    assert address[0].startswith("127.")
    _socket.socket.connect(self, address)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert connections.is_public(address) is public


def test_behind_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.says("http://public.example/r", 302, Location="http://cdn.example/a.jpg")
    server.says("http://cdn.example/a.jpg", body=PICTURE)
    assert open_url("http://public.example/r", 5, 10**6).read() == PICTURE
    for inside in ("http://10.0.0.1/", "http://intranet/", "http://localhost/", "http://127.1/"):
        server.says("http://public.example/r", 302, Location=inside)
        assert "a private address" in failure("http://public.example/r").message
    assert [path for path, _ in server.asked][2:] == ["http://public.example/r"] * 4


@pytest.mark.slow
def test_many_threads(server: Server) -> None:
    for number in range(8):
        server.says(f"/{number}", body=str(number).encode() * 1000)
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        for _ in range(3):
            found[number] = open_url(server.url(f"/{number}"), 5, 10**6).read()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number).encode() * 1000 for number in range(8)}
    assert server.connections == 8


def test_a_thread_that_cannot_be_started_is_a_failure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url()
    only_threads(0, monkeypatch)
    assert "cannot start the thread" in failure(url).message


def test_a_timeout_longer_than_threads_can_wait(server: Server) -> None:
    assert open_url(server.url(), 1e300, 10**6).read() == PICTURE

"""Downloads: complete and verified or not at all, whatever the server does; received bytes are not requested again."""

import dataclasses
import hashlib
import os
import shutil
import socket
import time
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests

from checkpoints import TINY, make_safetensors
from deterministic import uniform
from hub_server import Behaviour, Hub
from mfcli import connections, http
from mfcli.errors import ModelError, OutputError
from mfcli.http import RemoteFileInfo, SourceError, UnreachableError, open_session
from mfcli.hub import download
from mfcli.hub.download import Download
from mfcli.models.registry import Variant
from mfcli.results import Progress, Transfer

DATA = (uniform("download", 300_000) * 256).astype("uint8").tobytes()
DIGEST = hashlib.sha256(DATA).hexdigest()
PATH = "/org/repo/resolve/main/x.pth"
ROW = dataclasses.replace(TINY, name="x", params=0)


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.001)
    monkeypatch.setattr(http, "READ_TIMEOUT_S", 0.5)


@pytest.fixture(autouse=True)
def accept_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a whole file proves that it is a checkpoint is tested in test_acquire.py."""
    monkeypatch.setattr(download, "prove_checkpoint", lambda *_: None)
    monkeypatch.setattr(download, "_SPARE_BYTES", 10**6)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({PATH: DATA}) as server:
        yield server


@dataclasses.dataclass(frozen=True)
class Fetched:
    path: Path
    sha256: str
    remote: RemoteFileInfo


def fetch(
    url: str,
    cache: Path,
    progress: Progress = lambda _: None,
    *,
    row: Variant = ROW,
    expected: Mapping[str, str] = MappingProxyType({}),
    first: str | None = None,
) -> Fetched:
    with open_session() as session:
        started = Download(session, url, row, expected, cache, progress)
        return Fetched(started.path, started.run(first), started.remote)


def get(hub: Hub, cache: Path, *, told: list[Any] | None = None, **options: Any) -> Fetched:
    return fetch(hub.endpoint + PATH, cache, (lambda _: None) if told is None else told.append, **options)


def assert_arrived(fetched: Fetched) -> None:
    assert fetched.path.read_bytes() == DATA
    assert fetched.sha256 == DIGEST


def test_a_download_returns_the_servers_metadata(hub: Hub, tmp_path: Path) -> None:
    told: list[Any] = []
    fetched = get(hub, tmp_path, told=told)
    assert_arrived(fetched)
    assert list((tmp_path / "partial").iterdir()) == [fetched.path]
    assert (fetched.remote.sha256, fetched.remote.commit) == (DIGEST, "c0ffee")
    assert fetched.remote.etag == DIGEST
    assert told[0] == Transfer("x", 0, len(DATA))
    assert told[-1] == Transfer("x", len(DATA), len(DATA))
    assert [entry[0] for entry in hub.log] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(redirect=False),
        Behaviour(linked=False),
        Behaviour(redirect=False, head=False),
        Behaviour(etag=False),
        Behaviour(cut_after=100_000, cuts=2),
        Behaviour(cut_after=100_000, cuts=2, redirect=False),
        Behaviour(cut_after=100_000, cuts=2, etag=False, redirect=False),
        Behaviour(cut_after=100_000, cuts=2, ignore_range=True),
        Behaviour(cut_after=1, cuts=3),
        Behaviour(stalls=1),
        Behaviour(expired=3),
        Behaviour(busy=3),
        Behaviour(busy=2, busy_status=503, retry_after=None),
        Behaviour(busy=1, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    ],
    ids=str,
)
def test_temporary_failures(behaviour: Behaviour, hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = behaviour
    assert_arrived(get(hub, tmp_path))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ((b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"), "does not answer in time"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"), "does not answer in time"),
        ((b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,), "headers do not end"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**17,), "headers do not end"),
        ((b"\x16\x03\x01 not HTTP\r\n\r\n",), "is not HTTP"),
    ],
)
def test_endless_and_foreign_headers(
    raw: tuple[bytes, ...], reason: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEADERS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http, "MAX_TRIES", 2)
    hub.behaviour = Behaviour(raw=raw)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=reason):
        get(hub, tmp_path)
    assert time.monotonic() - began < 5


def test_a_dripping_chunk_header_ends(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SLOW_S", 0.3)
    monkeypatch.setattr(http, "MAX_TRIES", 2)
    remote = RemoteFileInfo(hub.endpoint + PATH, hub.endpoint + PATH, None, None, None, None)
    monkeypatch.setattr(download, "resolve_url", lambda *_, **__: remote)
    hub.behaviour = Behaviour(raw=(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", b"1"))
    with pytest.raises(UnreachableError, match="does not answer in time|ended early"):
        get(hub, tmp_path)


@pytest.mark.parametrize("linked", [True, False])
def test_redirects_from_a_public_to_a_private_address_are_refused(
    linked: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "is_public", lambda address: address == "127.0.0.1")
    hub.behaviour = Behaviour(location="http://169.254.169.254/latest", linked=linked)
    with pytest.raises(SourceError, match="redirects to 169.254.169.254, a private address, which is not followed"):
        get(hub, tmp_path)


def test_bytes_come_from_public_addresses_if_the_endpoint_is_public(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name in the redirect says nothing; the address that it resolves to does."""
    monkeypatch.setattr(connections, "is_public", lambda address: address == "127.0.0.1")
    look_up = socket.getaddrinfo

    def rebind(host: str, port: int, *arguments: object, **options: object) -> object:
        if host == "cdn.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))]
        return look_up(host, port, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    hub.behaviour = Behaviour(location="http://cdn.example/x.pth")
    with pytest.raises(SourceError, match="cdn.example, a private address"):
        get(hub, tmp_path)


def test_a_broken_download_resumes_at_its_last_byte(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(cut_after=100_000, cuts=2)
    assert_arrived(get(hub, tmp_path))
    assert [status for _, _, status in hub.gets] == [200, 206, 206]
    ranges = [headers.get("Range") for headers in hub.headers if "Range" in headers]
    assert len(ranges) == 2
    assert all(headers.get("If-Range") for headers in hub.headers if "Range" in headers)
    assert hub.sent <= 1.05 * len(DATA)


def test_a_later_call_resumes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_TRIES", 1)
    hub.behaviour = Behaviour(cut_after=200_000, cuts=1)
    with pytest.raises(UnreachableError):
        get(hub, tmp_path)
    assert_arrived(get(hub, tmp_path))
    assert [status for _, _, status in hub.gets] == [200, 206]
    assert hub.sent <= 1.05 * len(DATA)


def test_an_expired_address_is_renewed_during_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(cut_after=100_000, cuts=1, expired=0)
    told: list[Any] = []

    def expire(event: Any) -> None:
        told.append(event)
        if isinstance(event, str):  # the signed address expires before the next try
            hub.tokens += 1

    assert_arrived(fetch(hub.endpoint + PATH, tmp_path, expire))
    assert [entry[2] for entry in hub.log] == [302, 200, 403, 302, 206]


def test_an_address_that_always_expires_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(expired=100)
    with pytest.raises(SourceError, match="returned HTTP 403"):
        get(hub, tmp_path)
    assert [entry[0] for entry in hub.log].count("HEAD") == 1 + download.MAX_RESOLVES


def test_a_version_that_changed_starts_over(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_TRIES", 1)
    hub.files[PATH] = b"old" * 100_000
    hub.behaviour = Behaviour(cut_after=200_000, cuts=1)
    with pytest.raises(UnreachableError):
        get(hub, tmp_path)
    hub.files[PATH] = DATA
    assert_arrived(get(hub, tmp_path))
    assert [path.suffix for path in (tmp_path / "partial").iterdir()].count(".part") == 1


@pytest.mark.parametrize("linked", [True, False])
def test_a_server_that_changes_the_file_in_mid_download(
    linked: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entity tag of the body differs although the hub's does not: with If-Range the server sends the new file."""
    monkeypatch.setattr(http, "MAX_TRIES", 1)
    hub.files[PATH] = b"old" * 100_000
    hub.behaviour = Behaviour(cut_after=200_000, cuts=1, digest=DIGEST if linked else None, redirect=linked)
    with pytest.raises(UnreachableError):
        get(hub, tmp_path)
    hub.files[PATH] = DATA
    assert_arrived(get(hub, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "options", "message"),
    [
        (Behaviour(digest="0" * 64), {}, "but the server's X-Linked-Etag is 000"),
        (Behaviour(), {"expected": {"the pin": "1" * 64}}, "but the pin is 111"),
        (Behaviour(linked=False), {"expected": {"the pin": "1" * 64}}, "but the pin is 111"),
        (Behaviour(size=1_000_001), {}, "has 1000001 bytes, more than the limit of 1000000"),
        (Behaviour(endless=True, redirect=False), {}, "sent more than 1000000 bytes"),
        (Behaviour(endless=True), {}, "sent more than 300000 bytes"),
        (Behaviour(size=299_999), {}, "sent more than 299999 bytes"),
        (Behaviour(size=300_001), {}, "has 300000 bytes instead of the announced 300001"),
        (Behaviour(cut_after=100_000, cuts=99, ignore_range=True), {}, "gave up on .* after 5 tries"),
        (Behaviour(busy=100), {}, "gave up on .* after 5 tries: the server returned HTTP 429"),
        (Behaviour(stalls=100), {}, "gave up on .*: the (server does not answer in time|connection ended early)"),
    ],
    ids=str,
)
def test_a_wrong_file_is_not_kept(
    behaviour: Behaviour, options: dict[str, Any], message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.behaviour = behaviour
    with pytest.raises(SourceError, match=message):
        get(hub, tmp_path, **options)
    if "gave up" not in message:
        assert not list(tmp_path.glob("partial/*.part"))


def test_a_known_digest_is_compared_before_the_body_is_requested(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="but the pin is"):
        get(hub, tmp_path, expected={"the pin": "1" * 64})
    assert hub.sent == 0


def test_an_unknown_host_is_given_up_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    told: list[Any] = []
    with pytest.raises(UnreachableError, match="after 3 tries: no connection"):
        fetch("https://hub.example" + PATH, tmp_path, told.append)
    assert len(told) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_retried(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(busy=2, busy_status=status)
    with pytest.raises(SourceError, match=f"returned HTTP {status}"):
        get(hub, tmp_path)
    assert [entry[0] for entry in hub.log] == (["HEAD", "GET"] if status == 403 else ["HEAD"])


def test_an_unstable_connection_loses_no_bytes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SPARE_BYTES", 10**7)
    hub.files[PATH] = DATA * 5
    hub.behaviour = Behaviour(cut_after=100_000, cuts=14)
    assert get(hub, tmp_path).path.read_bytes() == DATA * 5
    assert hub.sent <= 1.05 * len(DATA * 5)


def test_a_slow_connection_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SLOW_S", 0.02)
    monkeypatch.setattr(download, "_PROGRESS_BYTES", 10**6)
    monkeypatch.setattr(download, "_SPARE_BYTES", 10**7)
    hub.files[PATH] = DATA * 5
    hub.behaviour = Behaviour(bytes_per_s=500_000)
    with pytest.raises(UnreachableError, match="gave up"):
        get(hub, tmp_path)


def test_a_server_that_ignores_if_range_does_not_mix_versions(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_TRIES", 1)
    hub.files[PATH] = bytes(len(DATA))
    hub.behaviour = Behaviour(cut_after=100_000, cuts=1, digest=DIGEST, ignore_if_range=True)
    with pytest.raises(UnreachableError):
        get(hub, tmp_path)
    hub.files[PATH] = DATA
    monkeypatch.setattr(http, "MAX_TRIES", 5)
    assert_arrived(get(hub, tmp_path))


@pytest.mark.parametrize("value", ["\u00b2", "-1", "9" * 400, "soon", "", f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"])
def test_malformed_retry_after_headers(value: str, hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(busy=1, retry_after=value)
    assert_arrived(get(hub, tmp_path))


def test_addresses_are_redacted() -> None:
    assert http.redact_url("http://me:secret@[::1]:45/x?token=1") == "http://[::1]:45/x"
    assert http.redact_url("https://me@example.org/x?token=1") == "https://example.org/x"


def test_an_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="after 5 tries: no connection"):
        fetch("http://127.0.0.1:9/x", tmp_path)


def test_a_malformed_address(tmp_path: Path) -> None:
    for url in ("nonsense", "http://", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        with pytest.raises(SourceError):
            fetch(url, tmp_path)


def test_https_never_becomes_http() -> None:
    from requests import Response

    response = Response()
    response.status_code, response.headers["Location"] = 302, "http://127.0.0.1/x"
    with pytest.raises(SourceError, match="from https to http"):
        http.redirect_target("https://127.0.0.1/x", response)


def test_a_redirect_to_a_file(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(redirect_scheme="file")
    with pytest.raises(SourceError, match="which is not a web address"):
        get(hub, tmp_path)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://[bad", "http://127.0.0.1:PORT/org/repo/resolve/main/x.pth redirects to a malformed address"),
        ("http://joe:secret@h:99999/x", "cannot request http://h:99999/x: the address is malformed"),
        ("http://a..b/x", "cannot request http://a..b/x: the address is malformed"),
        ("http://*.x/", "cannot request http://*.x/: the address is malformed"),
        ("ftp://joe:secret@h:99999/x", "redirects to ftp://h:99999/x, which is not a web address"),
    ],
)
def test_a_redirect_to_a_malformed_address(location: str, message: str, hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(location=location, linked=False)
    told: list[Any] = []
    with pytest.raises(SourceError) as caught:
        get(hub, tmp_path, told=told)
    assert message.replace("PORT", str(hub.resolver.server_port)) in caught.value.message
    assert "secret" not in caught.value.message
    assert told == []  # no retries


@pytest.mark.parametrize("proxy", ["foo://x", "http://[bad", "http://", "127.0.0.1:99999", "http://a..b:3"])
def test_a_malformed_proxy(proxy: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SourceError, match="the address, or the proxy's .*, is malformed"):
        get(hub, tmp_path)


def test_a_socks_proxy_without_its_package(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", _refuse_socks)
    with pytest.raises(SourceError, match="pip install pysocks"):
        get(hub, tmp_path)


def _refuse_socks(*_: object, **__: object) -> None:
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_missing_certificate_bundle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, "/nonexistent/ca.pem")
    with pytest.raises(ModelError, match=f"{name} names /nonexistent/ca.pem, which cannot be read") as caught:
        fetch("https://127.0.0.1:9/x", tmp_path)
    assert caught.value.hint == f"unset {name}, or point it to a PEM file"


def test_an_invalid_certificate_bundle_is_not_retried(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    told: list[Any] = []
    url = hub.endpoint.replace("http:", "https:") + "/x"
    with pytest.raises(UnreachableError, match="has to name a PEM file"):
        fetch(url, tmp_path, told.append)
    assert told == []


def test_an_address_is_not_mistaken_for_a_certificate_error() -> None:
    error = requests.exceptions.SSLError(
        "HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /x?sig=aPEMX509 (Caused by"
        " SSLError(SSLEOFError(8, 'EOF occurred in violation of protocol')))"
    )
    assert not http.classify_error(error).is_final


def test_credentials_that_cannot_be_encoded(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the credentials in the address or .netrc contain characters"):
        fetch(hub.endpoint.replace("//", "//joe:%E2%82%AC@") + PATH, tmp_path)


def test_credentials_stay_with_their_host(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    hub.behaviour = Behaviour(redirect_scheme="http")
    cdn = f"http://localhost:{hub.cdn.server_port}"
    original = http.redirect_target
    monkeypatch.setattr(
        http, "redirect_target", lambda url, response: cdn + original(url, response).split(str(hub.cdn.server_port))[1]
    )
    assert_arrived(get(hub, tmp_path))
    assert ["Authorization" in headers for headers in hub.headers] == [True, False]


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 299_999))
    with pytest.raises(OutputError, match="300000 more bytes are needed, but .* has 299999 free"):
        get(hub, tmp_path)
    assert hub.sent == 0


def test_a_disk_that_fills_up_keeps_the_partial_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            get(hub, tmp_path)
    assert caught.value.exit_code == 8
    assert_arrived(get(hub, tmp_path))


def interrupt_download(hub: Hub, folder: Path) -> Path:
    """Start a download and interrupt it; return the partial file."""

    def interrupt(event: Any) -> None:
        if isinstance(event, Transfer) and event.done_bytes > 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(hub.endpoint + PATH, folder, interrupt)
    (partial,) = folder.glob("partial/*.part")
    assert 150_000 < partial.stat().st_size < len(DATA)
    return partial


def test_an_interrupt_keeps_the_partial_file(hub: Hub, tmp_path: Path) -> None:
    before = interrupt_download(hub, tmp_path).stat().st_size
    assert_arrived(get(hub, tmp_path))
    assert f"bytes={before}-" in [headers.get("Range") for headers in hub.headers]


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_corrupted_partial_file_is_downloaded_again(is_whole: bool, hub: Hub, tmp_path: Path) -> None:
    partial = interrupt_download(hub, tmp_path)
    damaged = bytearray(DATA if is_whole else partial.read_bytes())
    damaged[100_000:100_008] = bytes(8)
    partial.write_bytes(damaged)
    told: list[Any] = []
    assert_arrived(get(hub, tmp_path, told=told))
    assert "the partial download of x was damaged: starting over" in told


def test_a_file_with_a_wrong_digest_is_downloaded_again_once(hub: Hub, tmp_path: Path) -> None:
    hub.behaviour = Behaviour(linked=False)
    partial = interrupt_download(hub, tmp_path)
    with pytest.raises(SourceError, match="but the digest of the first download is 111"):
        get(hub, tmp_path, first="1" * 64)
    assert len(hub.gets) == 3  # the interrupted one, its rest, and the whole file
    assert not partial.exists()


def test_a_damaged_header_of_a_partial_file_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    hub.files[PATH] = data = make_safetensors(1)
    hub.behaviour = Behaviour(linked=False, cut_after=70_000, cuts=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "MAX_TRIES", 1)
        with pytest.raises(UnreachableError):
            get(hub, tmp_path)
    (partial,) = tmp_path.glob("partial/*.part")
    partial.write_bytes(partial.read_bytes().replace(b"head.bias", b"head.bean"))
    told: list[Any] = []
    assert get(hub, tmp_path, told=told).path.read_bytes() == data
    assert "the partial download of x was damaged: starting over" in told


def test_a_wrong_header_ends_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.files[PATH] = make_safetensors(1, num_classes=10_000)
    hub.behaviour = Behaviour(bytes_per_s=1_000_000)
    with pytest.raises(SourceError, match="is not the checkpoint: it has a head of 10000 classes instead of the 1000"):
        get(hub, tmp_path)
    assert hub.sent < len(hub.files[PATH]) // 2
    assert not list(tmp_path.glob("partial/*"))

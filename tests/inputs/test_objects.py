"""Pictures in object stores, from a real server on loopback."""

import io
import json
import os
import signal
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ran

pytest.importorskip("obstore")
pytest.importorskip("botocore")
pytest.importorskip("moto.server")

from mfcli import store_clients
from mfcli.errors import EngineError, FailureCode, PictureError, UsageError
from mfcli.inputs.archive_sources import iter_named_sources
from mfcli.inputs.selection import Selection
from mfcli.inputs.sources import Source, iter_sources
from object_store import DENIED, EXPIRED, OTHER_REGION, SECRET, SERVER_ERROR, SLOW_DOWN, ObjectStore


def read(*arguments: str, selection: Selection = Selection()) -> dict[str, bytes | str]:  # noqa: B008 - frozen
    """Return what the sources of arguments hold by their names, or the messages of those that fail."""
    return {source.shown_name: open_source(source) for source in iter_sources(arguments, selection=selection)}


def open_source(source: Source) -> bytes | str:
    try:
        return source.open().read()
    except PictureError as error:
        return f"{error.code}: {error.message}"


@pytest.mark.parametrize(
    "key", ["a b.jpg", "a#b.jpg", "a?b.jpg", "a%20b.jpg", "a%.jpg", "é/日本.jpg", "a+b&c=d.jpg", "a[1].jpg", "a\\b.JPG"]
)
def test_keys_are_taken_as_they_are(store: ObjectStore, key: str) -> None:
    store.put(f"s3://photos/{key}", key.encode())
    found = {f"s3://photos/{key}": key.encode()}
    assert read(f"s3://photos/{key}") == found
    assert read("s3://photos/") == found


KEYS = ["a/1.jpg", "a/10.jpg", "a/2.jpg", "a/b/3.jpg", "a/.hidden.jpg", "a/notes.txt", "a.jpg", "ab/4.jpg", "raw"]


@pytest.mark.parametrize(
    ("argument", "keys"),
    [
        ("s3://photos", ["a.jpg", "a/1.jpg", "a/10.jpg", "a/2.jpg", "a/b/3.jpg", "ab/4.jpg"]),
        ("s3://photos/a/", ["a/1.jpg", "a/10.jpg", "a/2.jpg", "a/b/3.jpg"]),
        ("s3://photos/a", ["a/1.jpg", "a/10.jpg", "a/2.jpg", "a/b/3.jpg"]),
        ("s3://photos/raw", ["raw"]),
        ("S3://photos/a.jpg", ["a.jpg"]),
        ("s3://photos/a/1*.jpg", ["a/1.jpg", "a/10.jpg"]),
        ("s3://photos/a*/*.jpg", ["a/1.jpg", "a/10.jpg", "a/2.jpg", "ab/4.jpg"]),
        ("s3://photos/**/3.jpg", ["a/b/3.jpg"]),
    ],
)
def test_prefixes_and_globs(store: ObjectStore, argument: str, keys: list[str]) -> None:
    for key in KEYS:
        store.put(f"s3://photos/{key}", key.encode())
    for marker in ("a/", "a/folder/"):  # as consoles make them
        store.put(f"s3://photos/{marker}", b"")
    assert list(read(argument).values()) == [key.encode() for key in keys]


def test_listings_page_and_stream(store: ObjectStore) -> None:
    for number in range(2500):
        store.put(f"s3://many/{number:05}.jpg", b"")
    sources = iter_sources(["s3://many/"])
    assert next(sources).argument == "s3://many/00000.jpg"
    assert len(store.requests) <= 2
    assert sum(1 for _ in sources) == 2499
    assert len(store.requests) == 3


ODD = ["a//1.jpg", "a/./2.jpg", "a/../3.jpg", "/4.jpg"]


def test_keys_with_empty_parts_and_dots(store: ObjectStore) -> None:
    data = {f"s3://photos/{key}": key.encode() for key in [*ODD, "a/5.jpg", "a.jpg", "b.jpg"]}
    for name, content in data.items():
        store.put(name, content)
    assert read("s3://photos/") == data
    assert read(*data) == data
    assert list(read("s3://photos/", selection=Selection(max_bytes=2)).values()) == ["too_large: is over 2 bytes"] * 7
    assert list(read("s3://photos/a//")) == ["s3://photos/a//1.jpg"]
    assert list(read("s3://photos/a/..")) == ["s3://photos/a/../3.jpg"]
    store.fault = lambda path: DENIED if "//" in path else None
    assert read("s3://photos/a//1.jpg") == {"s3://photos/a//1.jpg": "permission: access is denied"}


def test_lists_and_filters(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("a?1.jpg", "b/2", "b/c/3.jpg"):
        store.put(f"s3://photos/{key}", key.encode())
    names = tmp_path / "names"
    names.write_text("s3://photos/a?1.jpg\ns3://photos/b/2\ns3://photos/b/c/\ns3://photos/gone.jpg\n")
    found = [open_source(source) for source in iter_sources([], files_from=str(names))]
    assert found == [b"a?1.jpg", b"b/2", b"b/c/3.jpg", "not_found: no such object"]
    assert read("s3://photos/", selection=Selection(exclude=("c",))) == {"s3://photos/a?1.jpg": b"a?1.jpg"}


def test_archives(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in/1.jpg", b"one")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        info = tarfile.TarInfo("2.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"two"))
    store.put("s3://photos/a.zip", packed.getvalue())
    store.put("s3://photos/b.tar", tarred.getvalue())
    assert read("s3://photos/a.zip", "s3://photos/b.tar") == {
        "s3://photos/a.zip/in/1.jpg": b"one",
        "s3://photos/b.tar/2.jpg": b"two",
    }
    assert list(temporary.iterdir()) == []  # a program that is killed leaves no copy
    store.requests.clear()
    names = tmp_path / "names"
    names.write_text("s3://photos/b.tar/2.jpg\ns3://photos/a.zip/in\ns3://photos/a.zip/in/1.jpg\n")
    assert [open_source(each) for each in iter_sources([], files_from=str(names))] == [b"two", b"one", b"one"]
    assert [path for method, path in store.requests if method == "GET"] == ["/photos/a.zip"]
    assert read("s3://photos/gone.zip") == {"s3://photos/gone.zip": "not_found: no such object"}


def test_an_archive_that_cannot_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(url: str, _: float) -> str:
        tries.append(url)
        raise PictureError(FailureCode.TIMEOUT, "the store does not answer in time")

    monkeypatch.setattr("mfcli.stores.identify_object", fail)
    names = [("s3://photos/far.zip", f"{number}.jpg") for number in range(5)]
    failures = [source.failure for source in iter_named_sources(names, Selection())]
    assert [failure and failure.code for failure in failures] == [FailureCode.TIMEOUT] * 5
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (EXPIRED, "permission: the credentials have expired"),
        (DENIED, "permission: access is denied"),
        (OTHER_REGION, "network: the bucket is in another region, eu-west-1: set AWS_REGION"),
        (SLOW_DOWN, "network: the store answers 503 SlowDown"),
        (SERVER_ERROR, "network: the store answers 500 InternalError"),
    ],
)
def test_failures(store: ObjectStore, fault: tuple[str, bytes], message: str) -> None:
    store.put("s3://photos/a.jpg", b"a")
    store.fault = lambda _: fault
    found = read("s3://photos/a.jpg", "s3://photos/", selection=Selection(timeout_s=1.0))
    assert [str(text)[: len(message)] for text in found.values()] == [message, message]
    assert "AKIAKEY" not in str(found)
    assert "secret" not in str(found)


@pytest.mark.parametrize("fault", [SLOW_DOWN, SERVER_ERROR, 1000], ids=["throttled", "500", "cut"])
def test_retries(store: ObjectStore, fault: "tuple[str, bytes] | int") -> None:
    data = bytes(range(256)) * 40
    for number in range(3):
        store.put(f"s3://photos/{number}.jpg", data)
    store.fail_first(2, fault, match="jpg")
    assert list(read("s3://photos/").values()) == [data, data, data]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://nobody/a.jpg", "not_found: there is no bucket s3://nobody/"),
        ("s3://photos/gone.jpg", "not_found: no such object"),
        ("s3://photos/a//b.jpg", "not_found: no such object"),
        ("ftp://host/a.jpg", "unsupported: ftp:// is not supported; http, https, file, s3, gs, az and hf are"),
    ],
)
def test_what_is_not_there(store: ObjectStore, url: str, message: str) -> None:
    store.put("s3://photos/b.jpg", b"")
    assert read(url) == {url: message}


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(EngineError, match=r"obstore is not installed\nhint: pip install 'metaformer-cli\[stores\]'"):
        iter_sources(["s3://photos/"])


def test_too_large(store: ObjectStore) -> None:
    store.put("s3://photos/a.jpg", b"12345")
    assert read("s3://photos/a.jpg", selection=Selection(max_bytes=4)) == {
        "s3://photos/a.jpg": "too_large: is over 4 bytes"
    }


@pytest.mark.usefixtures("store")
def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    message = "network: http://127.0.0.1:9 (AWS_ENDPOINT_URL) cannot be reached"
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": message}
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("127.0.0.1:9", "AWS_ENDPOINT_URL '127.0.0.1:9' has no scheme\nhint: http://127.0.0.1:9"),
        ("me:secret@localhost:9000", "AWS_ENDPOINT_URL 'localhost:9000' has no scheme\nhint: http://localhost:9000"),
        ("ftp://host", "AWS_ENDPOINT_URL 'ftp://host' is not an address\nhint: http://HOST:PORT or https://HOST"),
        ("http://a b", "AWS_ENDPOINT_URL 'http://a b' is not an address\nhint: http://HOST:PORT or https://HOST"),
    ],
)
def test_an_endpoint_that_is_no_address(endpoint: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError) as raised:
        iter_sources(["s3://photos/a.jpg"])
    assert str(raised.value) == message
    monkeypatch.setenv("AWS_ENDPOINT", endpoint)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(UsageError, match="AWS_ENDPOINT '"):
        iter_sources(["s3://photos/a.jpg"])


def test_an_empty_endpoint_is_none(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("s3://photos/a.jpg", b"a")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": b"a"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    store_clients._find_aws_config.cache_clear()
    assert "endpoint" not in store_clients._find_aws_config()[0]
    store_clients.open_bucket("s3://photos/", 1.0)  # obstore panics at an empty one
    assert "AWS_ENDPOINT_URL" not in os.environ


METADATA = "Generic GCS error: Error performing token request: GET http://169.254.169.254/: 403 Forbidden"


@pytest.mark.parametrize(
    ("bucket", "text", "message"),
    [
        ("gs://b/", METADATA, "permission: no credentials were found: GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth"),
        ("az://b/", METADATA, "permission: no credentials were found: AZURE_STORAGE_ACCOUNT_KEY or"),
        ("gs://b/", "Unable to open service account file", "permission: the file of credentials cannot be used: check"),
        ("az://b/", "Account must be specified", "permission: the storage account is not named: set AZURE_STORAGE_ACC"),
        ("gs://b/", "kind: Connect", "network: the store cannot be reached: check the network"),
        ("s3:///", "", "not_found: names no bucket: s3://BUCKET/KEY"),
    ],
)
def test_failures_of_the_set_up(bucket: str, text: str, message: str) -> None:
    with pytest.raises(PictureError) as raised, store_clients.translate_errors(bucket):
        raise RuntimeError(text)
    assert f"{raised.value.code}: {raised.value.message}".startswith(message)


def test_offline(store: ObjectStore) -> None:
    names = ["s3://photos/a.jpg", "s3://photos/", "s3://photos/*.jpg", "s3://photos/a.zip"]
    found = read(*names, selection=Selection(offline=True))
    assert list(found) == names
    assert all(str(text).startswith("network: not fetched while offline") for text in found.values())
    assert not store.requests


def test_profiles_give_credentials_region_and_endpoint(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.put("s3://photos/a.jpg", b"a")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile work]\nregion = eu-west-3\nendpoint_url = {store.url}\n"
        f"aws_access_key_id = AKIAWORK\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    seen: list[str] = []
    original = type(store).__call__

    def spy(self: ObjectStore, environ: dict[str, str], start: Callable[..., None]) -> object:
        seen.append(environ["HTTP_AUTHORIZATION"])
        return original(self, environ, start)

    monkeypatch.setattr(type(store), "__call__", spy)
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": b"a"}
    assert "Credential=AKIAWORK/" in seen[0]
    assert "/eu-west-3/s3/" in seen[0]


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    message = "permission: the configuration of AWS cannot be used (ProfileNotFound)"
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": message}
    assert not store.requests


def test_credentials_that_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    def fail(_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("botocore.credentials.Credentials.get_frozen_credentials", fail)
    message = "permission: the credentials of AWS cannot be renewed; log in again"
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": message}
    assert not store.requests


@pytest.mark.usefixtures("store")
def test_credentials_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.session

    sessions: list[object] = []
    original = botocore.session.Session

    def spy() -> object:
        time.sleep(0.1)
        sessions.append(original())
        return sessions[-1]

    monkeypatch.setattr(botocore.session, "Session", spy)
    sources = list(iter_sources([f"s3://photos/{number}.jpg" for number in range(20)]))
    assert all(source.start() for source in sources)
    assert {open_source(source) for source in sources} == {"not_found: there is no bucket s3://photos/"}
    assert len(sessions) == 1


def test_without_credentials(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store.fault = lambda _: ("200 OK", b"a")
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": b"a"}
    store.fault = lambda _: DENIED
    keys = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    message = f"permission: access is denied, and no credentials were found: {keys}"
    assert read("s3://photos/a.jpg") == {"s3://photos/a.jpg": message}


@pytest.mark.parametrize("name", ["s3://photos/a.jpg", "s3://photos/"])
def test_an_interrupt_does_not_wait_for_the_store(store: ObjectStore, name: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    goes_on = threading.Event()
    store.fault = lambda _: goes_on.wait(20) and None
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            read(name)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)
        goes_on.set()


def test_many_requests_are_under_way(store: ObjectStore, mf: Callable[..., Ran], coffee: Path) -> None:
    names = [f"s3://photos/{number:03}.jpg" for number in range(100)]
    for name in names:
        store.put(name, coffee.read_bytes())
    barrier = threading.Barrier(64)

    def wait_for_others(path: str) -> None:
        if "list-type" not in path and len(store.requests) < 66:
            barrier.wait(30)

    store.fault = wait_for_others
    ran = mf("predict", "s3://photos/", "--format", "jsonl")
    assert [json.loads(line)["input"] for line in ran.out.splitlines()] == names
    assert ran.code == 0
    assert store.most_at_once >= 64


@pytest.mark.parametrize("argument", ["s3://photos/a/", "s3://photos/a/*.jpg"])
def test_a_plan_has_sizes_and_versions(
    mf: Callable[..., Ran], store: ObjectStore, tmp_path: Path, argument: str
) -> None:
    store.put("s3://photos/a/1.jpg", b"123")
    assert mf("plan", argument, "-o", tmp_path / "plan", "-q").code == 0
    (row,) = map(json.loads, (tmp_path / "plan" / "shard-00000.jsonl").read_text().splitlines())
    etag = '"202cb962ac59075b964b07152d234b70"'  # the MD5 of the object
    assert row == {"input": "s3://photos/a/1.jpg", "input_b64": None, "member": None, "size_bytes": 3, "etag": etag}

"""Results in object stores: whole objects, resumed through the cache of this machine."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from conftest import Ran

pytest.importorskip("obstore")
pytest.importorskip("botocore")
pytest.importorskip("moto.server")

from mfcli.errors import FailureCode, PictureError
from mfcli.outputs import upload
from mfcli.store_urls import find_store_url
from mfcli.stores import upload_file
from object_store import DENIED, EXPIRED, OTHER_REGION, SECRET, SERVER_ERROR, ObjectStore

URL = "s3://photos/out/answers.jsonl"


@pytest.fixture
def photos(store: ObjectStore, coffee: Path) -> ObjectStore:
    for name in ("a", "b"):
        store.put(f"s3://photos/in/{name}.jpg", coffee.read_bytes())
    return store


def inputs(store: ObjectStore, url: str = URL) -> list[str]:
    return [json.loads(line)["input"] for line in store.get(url).splitlines()]


def test_it_appears_whole(photos: ObjectStore, mf: Callable[..., Ran], own_cache: Path) -> None:
    ran = mf("predict", "s3://photos/in/", "-o", URL)
    assert ran.code == 0, ran.err
    assert URL in ran.err
    assert inputs(photos) == ["s3://photos/in/a.jpg", "s3://photos/in/b.jpg"]
    assert photos.list("photos") == ["in/a.jpg", "in/b.jpg", "out/answers.jsonl"]
    assert not list((own_cache / "uploads").iterdir())
    again = mf("predict", "s3://photos/in/", "-o", URL)
    assert (again.code, again.err) == (
        8,
        f"error: {URL} exists\nhint: --overwrite replaces it; --resume goes on with it\n",
    )
    assert mf("predict", "s3://photos/in/b.jpg", "-o", URL, "--overwrite").code == 0
    assert inputs(photos) == ["s3://photos/in/b.jpg"]


def test_it_is_resumed(photos: ObjectStore, mf: Callable[..., Ran], own_cache: Path) -> None:
    photos.put("s3://photos/in/bad.jpg", b"")
    mf("predict", "s3://photos/in/", "--max-failures", "0", "-o", URL)
    assert "out/answers.jsonl" not in photos.list("photos")
    assert list(own_cache.glob("uploads/*/answers.jsonl.partial"))
    photos.put("s3://photos/in/bad.jpg", photos.get("s3://photos/in/a.jpg"))
    ran = mf("predict", "s3://photos/in/", "-o", URL, "--retry-failed")
    assert ran.code == 0, ran.err
    assert len(inputs(photos)) == 3
    photos.put("s3://photos/in/c.jpg", photos.get("s3://photos/in/a.jpg"))
    ran = mf("predict", "s3://photos/in/", "-o", URL, "--resume")  # on another machine
    assert ran.code == 0, ran.err
    assert len(inputs(photos)) == 4


def test_a_copy_that_was_cut_is_not_resumed(photos: ObjectStore, mf: Callable[..., Ran], own_cache: Path) -> None:
    assert mf("predict", "s3://photos/in/", "-o", URL).code == 0
    whole = photos.get(URL)

    def cut(_: str, file: IO[bytes], __: float) -> None:
        file.write(b"half a row")
        raise PictureError(FailureCode.NETWORK, "the store cannot be reached")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "download_object", cut)
        assert mf("predict", "s3://photos/in/", "-o", URL, "--resume").code == 8
    assert not [path for path in own_cache.glob("uploads/*/*") if path.is_file()]
    assert mf("predict", "s3://photos/in/", "-o", URL, "--resume").code == 0
    assert photos.get(URL) == whole


def test_a_failed_upload_is_repeated(photos: ObjectStore, mf: Callable[..., Ran]) -> None:
    url = "s3://photos/answers.csv"
    refused = ("400 Bad Request", b"<Error><Code>EntityTooLarge</Code></Error>")
    photos.fault = lambda path: refused if path.endswith(".csv") and ("PUT", path) in photos.requests else None
    ran = mf("predict", "s3://photos/in/", "-o", url)
    assert ran.code == 8
    assert f"error: cannot write {url}: the store answers 400 EntityTooLarge" in ran.err
    assert "--resume uploads them" in ran.err
    photos.fault = lambda _: None
    assert mf("predict", "s3://photos/in/", "-o", url).code == 8
    assert mf("predict", "s3://photos/in/", "-o", url, "--resume").code == 0
    assert photos.get(url).count(b"\n") == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (URL, f"error: cannot write {URL}: access is denied\nhint: name another object: --output FILE\n"),
        ("s3://nobody/a.csv", "error: cannot write s3://nobody/a.csv: there is no bucket s3://nobody/\n"),
        ("s3://photos/in/a.jpg", "s3://photos/in/a.jpg is an input"),
    ],
)
def test_it_is_refused_before_any_work(photos: ObjectStore, mf: Callable[..., Ran], url: str, message: str) -> None:
    photos.fault = lambda path: DENIED if "/out/" in path and path.endswith(".partial") else None
    ran = mf("predict", "s3://photos/in/a.jpg", "-o", url, "--format", "csv")
    assert ran.code == 8
    assert message in ran.err
    assert ("GET", "/photos/in/a.jpg") not in photos.requests


@pytest.mark.parametrize("fault", [EXPIRED, DENIED, OTHER_REGION, SERVER_ERROR])
def test_credentials_are_never_shown(
    photos: ObjectStore,
    mf: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    fault: tuple[str, bytes],
) -> None:
    monkeypatch.setenv("MF_DEBUG", "1")
    photos.fault = lambda path: fault if "/in" in path or "answers.csv" in path or "prefix=in" in path else None
    shown = [
        mf("predict", "s3://photos/in/", "s3://photos/in/a.jpg", "--timeout", "1", "--format", "json"),
        mf("predict", "s3://photos/in/a.jpg", "--timeout", "1", "-o", URL),
        mf("predict", "s3://photos/in/a.jpg", "-o", "s3://photos/answers.csv") if fault is not SERVER_ERROR else None,
        photos.get(URL),
        [file.read_bytes() for file in own_cache.rglob("*") if file.is_file() and file.suffix != ".onnx"],
    ]
    assert re.findall(f"{re.escape(SECRET)}|AKIAKEY|a secret", str(shown)) == []


def test_offline(photos: ObjectStore, mf: Callable[..., Ran]) -> None:
    ran = mf("predict", "a.jpg", "-o", URL, "--offline")
    assert (ran.code, photos.requests) == (8, [])


def test_features(photos: ObjectStore, mf: Callable[..., Ran]) -> None:
    pytest.importorskip("pyarrow")
    assert mf("embed", "s3://photos/in/", "-o", "s3://photos/features.parquet").code == 0
    assert photos.get("s3://photos/features.parquet").startswith(b"PAR1")


@pytest.mark.usefixtures("photos")
def test_find_names_the_object(mf: Callable[..., Ran]) -> None:
    ran = mf("find", "dog", "s3://photos/in/", "-o", URL)
    assert ran.err.splitlines()[-1].endswith(f" found; {URL}")


def test_large_objects_are_uploaded_in_parts(photos: ObjectStore, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(17 * 2**20))
    upload_file(large, "s3://photos/large", 5)
    assert len(photos.get("s3://photos/large")) == 17 * 2**20
    assert sum("partNumber" in path or "uploadId" in path for _, path in photos.requests) == 4


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("s3://bucket/a b.jsonl", "s3://bucket/a b.jsonl"),
        ("GS://bucket/x", "gs://bucket/x"),
        ("az://c/x/y", "az://c/x/y"),
        ("s3/a", None),
        ("/s3:/a", None),
        ("http://host/a", None),
    ],
)
def test_urls_survive_as_paths(name: str, url: str | None) -> None:
    assert find_store_url(Path(name)) == url

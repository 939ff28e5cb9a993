"""mf.lock: what --pin writes, and that it is compared wherever a checkpoint comes from."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import NAME, PAPER, TINY, make_pth, sha256
from hub_server import Hub
from mfcli.errors import ModelError, UsageError
from mfcli.hub.acquire import FetchOptions, carry_out, resolve, resolve_sources
from mfcli.hub.cache import StoredWeights
from mfcli.hub.pins import Pin, read_pins, write_pin
from mfcli.settings import HUB, Settings

ONE, OTHER = make_pth(1), make_pth(2)
COMMIT_PATH = PAPER.replace("/main/", "/c0ffee/")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({PAPER: ONE, COMMIT_PATH: ONE}) as server:
        yield server


@pytest.fixture
def settings(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return Settings(model="bundled", named_cache_dir=tmp_path / "cache", debug=False, endpoint=f"{hub.endpoint}/")


def get(settings: Settings, fetch: FetchOptions = FetchOptions()) -> StoredWeights:  # noqa: B008 - frozen
    return carry_out(resolve(TINY, settings, dataclasses.replace(fetch, keep=True)), lambda _: None)


def pin(settings: Settings) -> None:
    write_pin(get(settings, FetchOptions(pin=True)), NAME, settings)


def test_a_pin_names_the_commit(hub: Hub, settings: Settings) -> None:
    pin(settings)
    assert json.loads(Path("mf.lock").read_text()) == {
        "version": 1,
        "models": {NAME: {"url": HUB + COMMIT_PATH, "size_bytes": len(ONE), "sha256": sha256(ONE)}},
    }
    get(settings, FetchOptions(force=True))
    assert hub.log[-1][1] == COMMIT_PATH
    pin(settings)
    assert read_pins(settings)[NAME].url == HUB + COMMIT_PATH


def test_another_file_is_refused_from_everywhere(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    pin(settings)
    hub.files |= {PAPER: OTHER, COMMIT_PATH: OTHER}
    (tmp_path / "other.pth").write_bytes(OTHER)
    for fetch in (FetchOptions(force=True), FetchOptions(origin=str(tmp_path / "other.pth"))):
        with pytest.raises(ModelError, match="the pinned digest in mf.lock"):
            get(settings, fetch)
    assert get(settings).sha256 == sha256(ONE)
    renewed = get(settings, FetchOptions(pin=True, force=True))
    with pytest.raises(ModelError, match="the pinned digest in mf.lock"):
        get(settings)  # it is in the cache, but not pinned yet
    write_pin(renewed, NAME, settings)
    assert get(settings).sha256 == sha256(OTHER)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "https://evil.example/sail/dl/resolve/c0ffee/x.pth",
        f"{HUB}/evil/dl/resolve/c0ffee/poolformerv2/{NAME}.pth",
        HUB + PAPER.replace("/main/", "/c0ffee?x=/"),
        HUB + PAPER.replace("/main/", "/refs%2Fpr%2F1/"),
    ],
)
def test_no_more_than_the_commit_is_taken_from_a_lock_file(url: str | None, settings: Settings) -> None:
    fetch = FetchOptions(pinned=Pin(url, 1, "0" * 64))
    assert resolve_sources(TINY, settings, fetch) == resolve_sources(TINY, settings, FetchOptions())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"models": []}', '{"models": {"x": {}}}', "[" * 20_000]
    + [json.dumps({"models": {"x": {"url": None, "size_bytes": 1, "sha256": digest}}}) for digest in ("f00", 7)],
)
def test_damaged_lock_files(text: str, settings: Settings) -> None:
    Path("mf.lock").write_text(text)
    with pytest.raises(UsageError, match="mf.lock is not a lock file of mf"):
        resolve(TINY, settings)


def test_where_the_lock_file_is_looked_for(settings: Settings, tmp_path: Path) -> None:
    named = dataclasses.replace(settings, named_lock_file=tmp_path / "named.lock")
    with pytest.raises(UsageError, match="MF_LOCK names .*named.lock, which does not exist"):
        resolve(TINY, named)
    pin(named)
    assert list(read_pins(named)) == [NAME]
    assert read_pins(settings) == {}
    os.mkfifo("mf.lock")
    with pytest.raises(UsageError, match="cannot read mf.lock: not a regular file"):
        resolve(TINY, settings)

"""Getting checkpoints: the order of caches and sources, digests, manual files, and what is never used."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deterministic import fill
from hub_server import Behaviour, Hub
from mfcli import create_model, http
from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.hub import acquire
from mfcli.hub.acquire import DEFAULT_FETCH, FetchOptions, fetch_checkpoint
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import CheckpointStatus, check_stored_weights, find_stored_weights, manual_path, read_sidecar
from mfcli.models.registry import HUB, Pretraining, Variant, WeightsSource, find_variant
from mfcli.settings import Settings

PAPER, TIMM = "/sail/dl/resolve/main/tiny/tiny.pth", "/timm/tiny/resolve/main/model.safetensors"
TINY = dataclasses.replace(
    find_variant("bundled"),
    name="tiny",
    pretraining=Pretraining.IN1K,
    num_classes=1000,
    sources=(WeightsSource(HUB + PAPER), WeightsSource(HUB + TIMM)),
)
ONE, OTHER = b"paper" * 50_000, b"timm" * 50_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BACKOFF_S", 0.001)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({PAPER: ONE, TIMM: OTHER}) as server:
        yield server


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> Settings:
    return Settings(
        model="bundled",
        named_cache_dir=tmp_path / "cache",
        debug=False,
        endpoint=hub.endpoint,
        hub_cache_dir=tmp_path / "huggingface" / "hub",
        torch_hub_dir=tmp_path / "torch" / "hub" / "checkpoints",
    )


def get(
    settings: Settings,
    fetch: FetchOptions = DEFAULT_FETCH,
    *,
    row: Variant = TINY,
    told: list[Any] | None = None,
    check: Callable[[Path], object] | None = None,
) -> Any:
    return fetch_checkpoint(
        row, settings, (lambda _: None) if told is None else told.append, check or (lambda _: None), fetch
    )


def test_bundled_files_are_found() -> None:
    assert bundled_file("convformer_t8_64.onnx").stat().st_size > 1_000_000
    with pytest.raises(ModelError, match=r"bundled file none\.onnx is missing"):
        bundled_file("none.onnx")


def test_the_papers_host_is_asked_first_and_once(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    have = get(settings)
    assert have.path == tmp_path / "cache" / "checkpoints" / "tiny" / "tiny.pth"
    assert have.path.read_bytes() == ONE
    assert (have.sha256, have.size_bytes, have.commit) == (sha256(ONE), len(ONE), "c0ffee")
    assert have.url == hub.endpoint + PAPER
    assert read_sidecar(have.path.with_name("tiny.pth.json")) == have == find_stored_weights(TINY, settings)
    assert get(settings) == have
    assert len(hub.gets) == 1


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_leads_to_the_next_source(status: int, hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(busy=2 if status == 403 else 1, busy_status=status)
    told: list[Any] = []
    have = get(settings, told=told)
    assert have.path.name == "model.safetensors"
    assert have.path.read_bytes() == OTHER
    assert any(f"returned HTTP {status}" in event for event in told if isinstance(event, str))


def test_a_published_digest_belongs_to_its_source(settings: Settings) -> None:
    wrong = WeightsSource(HUB + PAPER, "0" * 64)
    row = dataclasses.replace(TINY, sources=(wrong, WeightsSource(HUB + TIMM, sha256(OTHER))))
    told: list[Any] = []
    assert get(settings, row=row, told=told).path.read_bytes() == OTHER
    assert any("but the published digest is 000" in event for event in told if isinstance(event, str))


def test_a_wrong_digest_from_the_server_is_refused(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(digest="0" * 64)
    with pytest.raises(
        ModelError, match="cannot fetch tiny from any source: .*X-Linked-Etag is 000.*; .*X-Linked"
    ) as caught:
        get(settings)
    assert caught.value.hint == f"get the file elsewhere and place it at {manual_path(TINY, settings)}"
    assert find_stored_weights(TINY, settings) is None


def test_without_a_published_digest_the_first_download_counts(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(linked=False)
    get(settings)
    hub.files[PAPER] = b"changed" * 30_000
    told: list[Any] = []
    have = get(settings, FetchOptions(force=True), told=told)
    assert have.path.read_bytes() == OTHER
    assert any("but the digest of the first download is" in event for event in told if isinstance(event, str))
    accepted = get(settings, FetchOptions(force=True, expect_sha256=sha256(hub.files[PAPER])))
    assert accepted.path.read_bytes() == hub.files[PAPER]


def test_the_requested_digest(hub: Hub, settings: Settings) -> None:
    with pytest.raises(ModelError, match="but the requested digest is 111"):
        get(settings, FetchOptions(expect_sha256="1" * 64))
    assert hub.sent == 0
    assert get(settings, FetchOptions(expect_sha256=sha256(OTHER).upper())).path.read_bytes() == OTHER
    with pytest.raises(ModelError, match="but the requested digest is 111") as caught:
        get(settings, FetchOptions(expect_sha256="1" * 64))
    assert caught.value.hint == "fetch it again: force=True"


def test_force_fetches_again(hub: Hub, settings: Settings) -> None:
    get(settings)
    get(settings, FetchOptions(force=True))
    assert len(hub.gets) == 2


def test_another_origin_may_be_a_file_or_a_mirror(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(OTHER)
    have = get(settings, FetchOptions(origin=str(local)))
    assert (have.path.name, have.url, have.sha256) == ("tiny.pth", None, sha256(OTHER))
    local.unlink()
    assert get(settings).path.read_bytes() == OTHER
    hub.files["/mirror/.x;y.pth"] = ONE
    mirrored = get(settings, FetchOptions(origin=f"{hub.endpoint}/mirror/.x;y.pth"))
    assert mirrored.path.parent == have.path.parent
    assert mirrored.path.read_bytes() == ONE
    with pytest.raises(ModelError, match="cannot read weights from"):
        get(settings, FetchOptions(origin=str(local)))


def test_offline_opens_no_socket(hub: Hub, settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    with pytest.raises(ModelError) as caught:
        get(offline)
    assert caught.value.message == "the weights of tiny are not on this machine and cannot be fetched while offline"
    place = manual_path(TINY, settings)
    assert caught.value.hint == f"when online: mf download tiny; or place the file at {place}"
    assert not hub.log
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(ONE)
    assert get(offline).sha256 == sha256(ONE)


def test_a_damaged_checkpoint_is_fetched_again(settings: Settings) -> None:
    have = get(settings)
    have.path.write_bytes(ONE[:-1])
    assert not have.is_here
    told: list[Any] = []
    assert get(settings, told=told).path.read_bytes() == ONE
    assert any(event.startswith("not used: ") for event in told if isinstance(event, str))


def test_the_hub_clients_cache_is_used(hub: Hub, settings: Settings) -> None:
    assert settings.hub_cache_dir is not None
    repository = settings.hub_cache_dir / "models--sail--dl"
    blob, link = repository / "blobs" / sha256(ONE), repository / "snapshots" / "c0ffee" / "tiny" / "tiny.pth"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(ONE)
    link.symlink_to(blob)
    assert get(settings).path.read_bytes() == ONE
    assert not hub.log
    shutil.rmtree(settings.cache_dir)
    blob.write_bytes(ONE[:-1])  # damaged: its name says so
    assert get(settings).path.read_bytes() == ONE
    assert hub.gets


def refuse(path: Path) -> None:
    if b"wrong" in path.read_bytes():
        raise ModelError(f"{path} is not a checkpoint")


def test_a_wrong_manual_file_is_kept_beside_the_downloaded_one(hub: Hub, settings: Settings) -> None:
    place = manual_path(TINY, settings)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"wrong, but the user's")
    (place.parent / ".tiny.pth.123").write_bytes(b"left by a killed copy")
    hub.files[PAPER] = b"<html>wrong</html>"
    hub.behaviour = Behaviour(linked=False)
    have = get(settings, check=refuse)
    assert have.path.read_bytes() == OTHER
    assert place.read_bytes() == b"wrong, but the user's"
    assert not (place.parent / ".tiny.pth.123").exists()
    assert not acquire.has_new_manual_file(TINY, settings)  # it was tried
    hub.files[PAPER] = ONE
    assert get(settings, FetchOptions(force=True)).path == place
    assert not have.path.exists()


def test_torch_hubs_cache_is_used_if_it_holds_the_model(hub: Hub, settings: Settings) -> None:
    assert settings.torch_hub_dir is not None
    settings.torch_hub_dir.mkdir(parents=True)
    (settings.torch_hub_dir / "tiny.pth").write_bytes(b"good")
    assert get(settings, check=refuse).path.read_bytes() == b"good"
    assert not hub.log
    shutil.rmtree(settings.cache_dir)
    (settings.torch_hub_dir / "tiny.pth").write_bytes(b"wrong")
    assert get(settings, check=refuse).path.read_bytes() == ONE


def test_a_web_page_instead_of_a_checkpoint_is_not_kept(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(linked=False)
    hub.files[PAPER] = b"<html>wrong</html>"
    assert get(settings, check=refuse).path.read_bytes() == OTHER
    hub.files[PAPER] = ONE
    shutil.rmtree(settings.cache_dir / "checkpoints")
    assert get(settings, check=refuse).path.read_bytes() == ONE


def test_a_wrong_mirror_leaves_the_cached_checkpoint(hub: Hub, settings: Settings) -> None:
    have = get(settings)
    hub.files["/x"] = b"wrong"
    with pytest.raises(ModelError, match="is not the checkpoint"):
        get(settings, FetchOptions(origin=f"{hub.endpoint}/x"), check=refuse)
    assert find_stored_weights(TINY, settings) == have
    assert have.is_here


def test_a_manual_file_that_grows_is_tried_again(hub: Hub, settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = manual_path(TINY, settings)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"wrong, half")
    with pytest.raises(ModelError, match="no file on this machine has the weights of tiny: .* is not a checkpoint"):
        get(offline, check=refuse)
    place.write_bytes(ONE)
    assert get(offline, check=refuse).sha256 == sha256(ONE)
    place.write_bytes(OTHER + b"and more")
    assert get(offline, check=refuse).sha256 == sha256(OTHER + b"and more")
    assert not hub.log


@pytest.mark.slow
def test_a_manual_file_replaced_by_one_of_the_same_size_is_used(settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = manual_path(TINY, settings)
    place.parent.mkdir(parents=True)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(create_model("bundled", num_classes=1000).state_dict(), place)
        found.append(
            (place.stat().st_size, ensure_artifact(TINY, None, offline).weights_sha256, sha256(place.read_bytes()))
        )
    assert found[0][0] == found[1][0]
    assert [used == there for _, used, there in found] == [True, True]
    assert found[0][1] != found[1][1]


def test_a_touched_checkpoint_is_hashed_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    have, hashed = get(settings), []
    monkeypatch.setattr("mfcli.hub.cache.sha256_of", lambda path: hashed.append(path) or sha256(path.read_bytes()))
    get(settings)
    assert hashed == []
    os.utime(have.path, (0, 0))
    assert [get(settings).sha256 for _ in range(2)] == [have.sha256] * 2
    assert hashed == [have.path]


def test_a_file_of_the_same_size_and_time_is_noticed(settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = manual_path(TINY, settings)
    place.parent.mkdir(parents=True)
    for data in ONE, ONE[::-1]:
        time.sleep(0.02)  # clocks of file systems are coarse
        place.write_bytes(data)
        os.utime(place, (1, 1))
        assert get(offline).sha256 == sha256(data)


def test_a_file_that_changes_during_its_check(settings: Settings) -> None:
    place = manual_path(TINY, settings)
    place.parent.mkdir(parents=True)
    place.write_bytes(ONE)

    def change(path: Path) -> None:
        time.sleep(0.02)  # clocks of file systems are coarse
        path.write_bytes(ONE[::-1])

    with pytest.raises(ModelError, match="changed while it was prepared"):
        get(dataclasses.replace(settings, offline=True), check=change)
    assert find_stored_weights(TINY, settings) is None


@pytest.mark.parametrize("is_pruned", [False, True])
def test_a_manual_file_beside_another_checkpoint_is_tried_once(
    is_pruned: bool, settings: Settings, tmp_path: Path
) -> None:
    offline = dataclasses.replace(settings, offline=True)
    (tmp_path / "x.safetensors").write_bytes(OTHER)
    have = get(offline, FetchOptions(origin=str(tmp_path / "x.safetensors")))
    assert have.path.name == "model.safetensors"
    place = manual_path(TINY, settings)
    place.write_bytes(b"wrong")
    told: list[Any] = []
    for _ in range(2):
        if acquire.has_new_manual_file(TINY, offline):
            acquire.adopt_manual_file(TINY, offline, told.append, refuse)
        assert find_stored_weights(TINY, offline) == have
    assert told == [f"not used: {place} is not a checkpoint"]
    assert place.read_bytes() == b"wrong"
    if is_pruned:
        have.path.unlink()
    time.sleep(0.02)  # clocks of file systems are coarse
    place.write_bytes(b"right")
    assert acquire.has_new_manual_file(TINY, offline)
    acquire.adopt_manual_file(TINY, offline, told.append, refuse)
    assert get(offline).sha256 == sha256(b"right")
    assert not acquire.has_new_manual_file(TINY, offline)


def test_a_newer_sidecar_is_not_overwritten(settings: Settings) -> None:
    have = get(settings)
    os.utime(have.path, (0, 0))
    sidecar = have.path.with_name("tiny.pth.json")
    sidecar.write_text(sidecar.read_text().replace(have.sha256, "1" * 64))
    assert check_stored_weights(have) is CheckpointStatus.INTACT
    assert "1" * 64 in sidecar.read_text()


def test_a_wrong_manual_file_leaves_the_prepared_model_usable(settings: Settings, tmp_path: Path) -> None:
    offline = dataclasses.replace(settings, offline=True)
    state = fill(create_model("bundled", num_classes=1000)).state_dict()
    save_file(state, tmp_path / "x.safetensors")
    ready = ensure_artifact(TINY, None, offline, fetch=FetchOptions(origin=str(tmp_path / "x.safetensors")))
    manual_path(TINY, settings).write_bytes(b"half of")
    told: list[Any] = []
    assert ensure_artifact(TINY, None, offline, told.append) == ready
    assert [str(note)[:8] for note in told if "preparing" not in str(note)] == ["not used"]
    assert ready.checkpoint is not None
    ready.checkpoint.unlink()
    for _ in range(2):
        assert ensure_artifact(TINY, None, offline, told.append).weights_sha256 == ready.weights_sha256
    assert [str(note)[:8] for note in told if "preparing" not in str(note)] == ["not used"]


def test_a_copied_read_only_cache_is_not_hashed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    have = get(settings)
    status = have.path.stat()
    copy = have.path.with_name("copy")
    copy.write_bytes(ONE)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(have.path)
    monkeypatch.setattr("mfcli.hub.cache.sha256_of", None)
    monkeypatch.setattr("mfcli.hub.cache.is_writable", lambda _: False)
    assert check_stored_weights(have) is CheckpointStatus.INTACT


def test_sidecars_of_other_versions(settings: Settings) -> None:
    have = get(settings)
    sidecar = have.path.with_name("tiny.pth.json")
    known = json.loads(sidecar.read_text())
    del known["identity"]
    sidecar.write_text(json.dumps({**known, "mtime_ns": 1}))
    assert find_stored_weights(TINY, settings) == dataclasses.replace(have, identity=[])
    sidecar.write_text(json.dumps({**known, "identity": None}))
    assert get(settings) == dataclasses.replace(have, identity=[])
    sidecar.write_text("[]")
    assert find_stored_weights(TINY, settings) is None


def test_checkpoint_statuses(settings: Settings, tmp_path: Path) -> None:
    have = get(settings)
    assert check_stored_weights(have) is CheckpointStatus.INTACT
    have.path.rename(tmp_path / "elsewhere")
    have.path.symlink_to(tmp_path / "elsewhere")
    assert check_stored_weights(have) is CheckpointStatus.INTACT
    (tmp_path / "elsewhere").unlink()
    assert check_stored_weights(have) is CheckpointStatus.GONE
    have.path.unlink()
    have.path.write_bytes(have.size_bytes * b"x")
    assert check_stored_weights(have) is CheckpointStatus.OTHER


def test_a_changed_file_in_a_read_only_cache(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    have = get(settings)
    have.path.write_bytes(OTHER)

    def refuse_lock(path: Path, *_: object) -> None:
        raise OutputError(f"cannot write to the cache {path.parent}: Permission denied")

    monkeypatch.setattr(acquire, "lock", refuse_lock)
    monkeypatch.setattr(acquire, "is_writable", lambda _: False)
    with pytest.raises(ModelError, match="changed since it was prepared, and cannot write to the cache"):
        get(settings)
    have.path.unlink()
    with pytest.raises(ModelError, match="cannot be fetched while offline"):
        get(dataclasses.replace(settings, offline=True))
    with pytest.raises(OutputError):
        get(settings)


def test_a_cached_checkpoint_needs_no_lock(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    have = get(settings)
    monkeypatch.setattr(acquire, "lock", None)  # it fails in a read-only cache
    assert get(settings, FetchOptions(keep=True)) == have
    assert get(settings, FetchOptions(keep=True, expect_sha256=have.sha256)) == have


def test_offline_the_error_says_why_local_files_are_not_used(settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    have = get(settings)
    have.path.write_bytes(OTHER)
    with pytest.raises(ModelError) as caught:
        get(offline)
    assert caught.value.message == (
        f"no file on this machine has the weights of tiny: {have.path} has SHA-256 {sha256(OTHER)}, but the"
        f" recorded digest is {sha256(ONE)}"
    )
    assert caught.value.hint == f"when online: mf download tiny; or place the file at {have.path}"


def test_unreadable_caches_of_other_programs_are_skipped(settings: Settings, tmp_path: Path) -> None:
    unseen = tmp_path / ("x" * 300)  # fails as a folder without permissions does
    assert get(dataclasses.replace(settings, hub_cache_dir=unseen, torch_hub_dir=unseen)).path.read_bytes() == ONE


def test_the_first_digest_is_recorded_per_query(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(linked=False)
    for version, data in ("1", ONE), ("2", OTHER):
        hub.files["/x.pth"] = data
        get(settings, FetchOptions(origin=f"{hub.endpoint}/x.pth?version={version}"))
    with pytest.raises(ModelError, match="but the digest of the first download is") as caught:
        get(settings, FetchOptions(origin=f"{hub.endpoint}/x.pth?version=1"))
    assert caught.value.hint == (f"to accept the new file: mf download tiny with expect_sha256={sha256(OTHER)}")


@pytest.mark.parametrize(
    "address", ["nonsense://x/y", "http://", "http://[x/", "http://h:99999/x", "file:///etc/passwd"]
)
def test_malformed_addresses(address: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match="is not a web address"):
        get(settings, FetchOptions(origin=address))
    with pytest.raises(UsageError, match="is not a web address"):
        get(dataclasses.replace(settings, endpoint="mirror.example"))


def test_secrets_in_an_address_are_not_stored(hub: Hub, settings: Settings) -> None:
    hub.files["/x.pth"] = ONE
    address = hub.endpoint.replace("//", "//joe:secret@") + "/x.pth?token=" + "s" * 400
    assert get(settings, FetchOptions(origin=address)).url == f"{hub.endpoint}/x.pth"
    kept = list(settings.cache_dir.rglob("*.json"))
    assert not [path for path in kept if "secret" in path.read_text() or "ssss" in path.read_text()]


def test_an_unusable_cache_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the cache"):
        get(dataclasses.replace(settings, named_cache_dir=tmp_path / "file"))


@pytest.mark.slow
def test_the_artifact_of_a_download_outlives_its_checkpoint(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    torch.save(fill(create_model("bundled", num_classes=1000)).state_dict(), tmp_path / "x.pth")
    hub.files[PAPER] = (tmp_path / "x.pth").read_bytes()
    artifact = ensure_artifact(TINY, None, settings)
    assert artifact.source_url == HUB + PAPER
    assert artifact.labels[0].wnid == "n01440764"
    have = find_stored_weights(TINY, settings)
    assert have is not None
    assert artifact.checkpoint == have.path
    requests = len(hub.log)
    assert ensure_artifact(TINY, None, settings) == artifact
    have.path.unlink()
    assert ensure_artifact(TINY, None, settings) == dataclasses.replace(artifact, checkpoint=None)
    assert len(hub.log) == requests
    sidecar = json.loads(have.path.with_name("tiny.pth.json").read_text())
    assert sidecar["sha256"] == artifact.weights_sha256
    artifact.path.unlink()
    assert ensure_artifact(TINY, None, settings) == artifact
    assert len(hub.log) > requests


def test_a_corrupted_checkpoint_is_replaced(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    torch.save(fill(create_model("bundled", num_classes=1000)).state_dict(), tmp_path / "x.pth")
    hub.files[PAPER] = (tmp_path / "x.pth").read_bytes()
    have = get(settings)
    data = bytearray(hub.files[PAPER])
    data[len(data) // 2] ^= 255
    have.path.write_bytes(data)
    artifact = ensure_artifact(TINY, None, settings)
    assert artifact.weights_sha256 == sha256(hub.files[PAPER])
    assert have.path.read_bytes() == hub.files[PAPER]


def test_the_requested_digest_is_compared_when_a_damaged_checkpoint_is_replaced(
    hub: Hub, settings: Settings, tmp_path: Path
) -> None:
    torch.save(fill(create_model("bundled", num_classes=1000)).state_dict(), tmp_path / "x.pth")
    good = hub.files[PAPER] = (tmp_path / "x.pth").read_bytes()
    have = get(settings)
    have.path.write_bytes(good[:-1] + b"x")
    hub.files[PAPER] = ONE  # another version by now
    with pytest.raises(ModelError, match="but the requested digest is"):
        ensure_artifact(TINY, None, settings, fetch=FetchOptions(expect_sha256=sha256(good)))

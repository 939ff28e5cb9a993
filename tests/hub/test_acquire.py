"""Getting checkpoints: the order of caches and sources, digests, manual files, and what is never used."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import NAME, PAPER, TIMM, TINY, make_pth, make_safetensors, sha256
from hub_server import Behaviour, Hub
from mfcli import http
from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import sha256_of
from mfcli.hub import acquire
from mfcli.hub.acquire import DEFAULT_FETCH, Copy, Fetch, FetchOptions, Missing, Use, carry_out, resolve
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import CheckpointStatus, ModelCache, check_stored_weights, read_sidecar, record_identity
from mfcli.models.registry import Variant, WeightsSource
from mfcli.settings import HUB, Settings

ONE, OTHER = make_pth(1), make_safetensors(2)
WEB_PAGE = b"<html>not found</html>"


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


def cache_of(settings: Settings) -> ModelCache:
    return ModelCache(settings.cache_dir, TINY)


def get(
    settings: Settings, fetch: FetchOptions = DEFAULT_FETCH, *, row: Variant = TINY, told: list[Any] | None = None
) -> Any:
    plan = resolve(row, settings, dataclasses.replace(fetch, keep=True))
    return carry_out(plan, (lambda _: None) if told is None else told.append)


def test_bundled_files_are_found() -> None:
    assert bundled_file("convformer_t8_64.onnx").stat().st_size > 1_000_000
    with pytest.raises(ModelError, match=r"bundled file none\.onnx is missing"):
        bundled_file("none.onnx")


def test_the_papers_host_is_asked_first_and_once(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    have = get(settings)
    assert have.path == tmp_path / "cache" / "checkpoints" / NAME / f"{NAME}.pth"
    assert have.path.read_bytes() == ONE
    assert (have.sha256, have.size_bytes, have.commit) == (sha256(ONE), len(ONE), "c0ffee")
    assert have.url == hub.endpoint + PAPER
    assert read_sidecar(have.path.with_name(f"{NAME}.pth.json")) == have == cache_of(settings).find()
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
        ModelError, match=f"cannot fetch {NAME} from any source: .*X-Linked-Etag is 000.*; .*X-Linked"
    ) as caught:
        get(settings)
    assert caught.value.hint == f"get the file elsewhere and place it at {cache_of(settings).manual_path}"
    assert cache_of(settings).find() is None


def test_without_a_published_digest_the_first_download_counts(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(linked=False)
    get(settings)
    hub.files[PAPER] = make_pth(3)
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
    assert (have.path.name, have.url, have.sha256) == (f"{NAME}.pth", None, sha256(OTHER))
    assert local.read_bytes() == OTHER
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
    assert caught.value.message == f"the weights of {NAME} are not on this machine and cannot be fetched while offline"
    place = cache_of(settings).manual_path
    assert caught.value.hint == f"when online: mf download {NAME}; or place the file at {place}"
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
    blob, link = (
        repository / "blobs" / sha256(ONE),
        repository / "snapshots" / "c0ffee" / "poolformerv2" / f"{NAME}.pth",
    )
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


def test_a_wrong_manual_file_is_kept_beside_the_downloaded_one(hub: Hub, settings: Settings) -> None:
    place = cache_of(settings).manual_path
    place.parent.mkdir(parents=True)
    place.write_bytes(WEB_PAGE)
    (place.parent / f".{NAME}.pth.123").write_bytes(b"left by a killed copy")
    hub.files[PAPER] = WEB_PAGE
    hub.behaviour = Behaviour(linked=False)
    have = get(settings)
    assert have.path.read_bytes() == OTHER
    assert place.read_bytes() == WEB_PAGE
    assert not (place.parent / f".{NAME}.pth.123").exists()
    assert not cache_of(settings).has_new_manual_file()  # it was tried
    hub.files[PAPER] = ONE
    assert get(settings, FetchOptions(force=True)).path == place
    assert not have.path.exists()


def test_torch_hubs_cache_is_used_if_it_holds_the_model(hub: Hub, settings: Settings) -> None:
    assert settings.torch_hub_dir is not None
    settings.torch_hub_dir.mkdir(parents=True)
    (settings.torch_hub_dir / f"{NAME}.pth").write_bytes(OTHER)
    assert get(settings).path.read_bytes() == OTHER
    assert not hub.log
    shutil.rmtree(settings.cache_dir)
    (settings.torch_hub_dir / f"{NAME}.pth").write_bytes(make_pth(num_classes=10))
    assert get(settings).path.read_bytes() == ONE


def test_a_web_page_instead_of_a_checkpoint_is_not_kept(hub: Hub, settings: Settings) -> None:
    hub.behaviour = Behaviour(linked=False)
    hub.files[PAPER] = WEB_PAGE
    assert get(settings).path.read_bytes() == OTHER
    hub.files[PAPER] = ONE
    shutil.rmtree(settings.cache_dir / "checkpoints")
    assert get(settings).path.read_bytes() == ONE


def test_a_wrong_mirror_leaves_the_cached_checkpoint(hub: Hub, settings: Settings) -> None:
    have = get(settings)
    hub.files["/x"] = WEB_PAGE
    with pytest.raises(ModelError, match="is not the checkpoint"):
        get(settings, FetchOptions(origin=f"{hub.endpoint}/x"))
    assert cache_of(settings).find() == have
    assert have.is_here


def test_a_manual_file_that_grows_is_tried_again(hub: Hub, settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = cache_of(settings).manual_path
    place.parent.mkdir(parents=True)
    place.write_bytes(ONE[:-100])
    with pytest.raises(ModelError, match=f"the weights of {NAME}: .* is not a checkpoint"):
        get(offline)
    place.write_bytes(ONE)
    assert get(offline).sha256 == sha256(ONE)
    place.write_bytes(OTHER)
    assert get(offline).sha256 == sha256(OTHER)
    assert not hub.log


@pytest.mark.slow
def test_a_manual_file_replaced_by_one_of_the_same_size_is_used(settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = cache_of(settings).manual_path
    place.parent.mkdir(parents=True)
    for data in make_safetensors(1), make_safetensors(2):
        place.write_bytes(data)
        assert ensure_artifact(TINY, None, offline).weights_sha256 == sha256(data)
    assert len(data) == len(make_safetensors(1))


def test_a_touched_checkpoint_is_hashed_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    have, hashed = get(settings), []
    monkeypatch.setattr("mfcli.hub.cache.known_sha256", lambda path: hashed.append(path) or sha256(path.read_bytes()))
    get(settings)
    assert hashed == []
    os.utime(have.path, (0, 0))
    assert [get(settings).sha256 for _ in range(2)] == [have.sha256] * 2
    assert hashed == [have.path] * 2  # to resolve, and before the new identity is recorded


def test_a_file_of_the_same_size_and_time_is_noticed(settings: Settings) -> None:
    offline = dataclasses.replace(settings, offline=True)
    place = cache_of(settings).manual_path
    place.parent.mkdir(parents=True)
    for data in make_safetensors(1), make_safetensors(2):
        time.sleep(0.02)  # clocks of file systems are coarse
        place.write_bytes(data)
        os.utime(place, (1, 1))
        assert get(offline).sha256 == sha256(data)


def test_a_file_that_changes_while_it_is_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    place = cache_of(settings).manual_path
    place.parent.mkdir(parents=True)
    place.write_bytes(ONE)

    def change(path: Path, _: Variant) -> None:
        time.sleep(0.02)  # clocks of file systems are coarse
        path.write_bytes(OTHER)

    monkeypatch.setattr("mfcli.models.checkpoint.prove_checkpoint", change)
    with pytest.raises(ModelError, match="changed while it was read"):
        get(dataclasses.replace(settings, offline=True))
    assert cache_of(settings).find() is None


def test_a_file_that_changes_while_it_is_copied(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.pth").write_bytes(ONE)
    monkeypatch.setattr(shutil, "copyfile", lambda _, copy: copy.write_bytes(OTHER))
    with pytest.raises(ModelError, match="changed while it was copied"):
        get(settings, FetchOptions(origin=str(tmp_path / "x.pth")))
    assert not list(cache_of(settings).folder.glob("*.pth*"))


def test_a_file_that_changes_between_plan_and_use(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(ONE)
    plan = resolve(TINY, settings, FetchOptions(origin=str(tmp_path / "x.pth")))
    time.sleep(0.02)  # clocks of file systems are coarse
    (tmp_path / "x.pth").write_bytes(make_pth(num_classes=10))
    with pytest.raises(ModelError, match="has a head of 10 classes"):
        carry_out(plan, lambda _: None)
    assert cache_of(settings).find() is None


def test_a_checkpoint_that_changes_before_its_artifact_is_built(settings: Settings) -> None:
    have = get(settings)
    with pytest.raises(ModelError, match="changed while it was read"):
        ensure_artifact(TINY, None, settings, lambda _: have.path.write_bytes(OTHER))
    assert not list(settings.cache_dir.rglob("*.onnx"))


@pytest.mark.parametrize("is_pruned", [False, True])
def test_a_manual_file_beside_another_checkpoint_is_tried_once(
    is_pruned: bool, settings: Settings, tmp_path: Path
) -> None:
    offline = dataclasses.replace(settings, offline=True)
    (tmp_path / "x.safetensors").write_bytes(OTHER)
    have = get(offline, FetchOptions(origin=str(tmp_path / "x.safetensors")))
    assert have.path.name == "model.safetensors"
    if is_pruned:
        have.path.unlink()
    place = cache_of(settings).manual_path
    place.write_bytes(WEB_PAGE)
    told: list[Any] = []
    for _ in range(2):
        assert carry_out(resolve(TINY, offline), told.append) == have
    assert told == [f"not used: {place} is not a checkpoint"]
    assert place.read_bytes() == WEB_PAGE
    time.sleep(0.02)  # clocks of file systems are coarse
    place.write_bytes(ONE)
    assert carry_out(resolve(TINY, offline), told.append).sha256 == sha256(ONE)
    assert told[1:] == [f"found the weights of {NAME} in {place}"]
    assert get(offline).sha256 == sha256(ONE)
    assert not cache_of(offline).has_new_manual_file()


def test_a_newer_sidecar_is_not_overwritten(settings: Settings) -> None:
    have = get(settings)
    os.utime(have.path, (0, 0))
    sidecar = have.path.with_name(f"{NAME}.pth.json")
    sidecar.write_text(sidecar.read_text().replace(have.sha256, "1" * 64))
    assert check_stored_weights(have) is CheckpointStatus.INTACT
    record_identity(have)
    assert "1" * 64 in sidecar.read_text()


def test_a_wrong_manual_file_leaves_the_prepared_model_usable(settings: Settings, tmp_path: Path) -> None:
    offline = dataclasses.replace(settings, offline=True)
    (tmp_path / "x.safetensors").write_bytes(OTHER)
    ready = ensure_artifact(TINY, None, offline, fetch=FetchOptions(origin=str(tmp_path / "x.safetensors")))
    cache_of(settings).manual_path.write_bytes(ONE[:-100])
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
    monkeypatch.setattr("mfcli.hub.cache.known_sha256", None)
    monkeypatch.setattr("mfcli.hub.cache.is_writable", lambda _: False)
    assert check_stored_weights(have) is CheckpointStatus.INTACT


def test_sidecars_of_other_versions(settings: Settings) -> None:
    have = get(settings)
    sidecar = have.path.with_name(f"{NAME}.pth.json")
    known = json.loads(sidecar.read_text())
    del known["identity"]
    sidecar.write_text(json.dumps({**known, "mtime_ns": 1}))
    assert cache_of(settings).find() == dataclasses.replace(have, identity=[])
    sidecar.write_text(json.dumps({**known, "identity": None}))
    assert get(settings) == dataclasses.replace(have, identity=[])
    sidecar.write_text("[]")
    assert cache_of(settings).find() is None


def nest_deep(path: Path) -> None:
    path.write_text("[" * 20_000)


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [nest_deep, make_pipe])
@pytest.mark.parametrize("name", [f"checkpoints/{NAME}/{NAME}.pth.json", f"known/{NAME}.json"])
def test_damaged_records_are_as_good_as_none(damage: Callable[[Path], None], name: str, settings: Settings) -> None:
    have = get(settings)
    damage(settings.cache_dir / name)
    assert get(settings, FetchOptions(force=True)).sha256 == have.sha256


def test_a_pipe_in_the_place_of_a_checkpoint(settings: Settings) -> None:
    have = get(settings)
    make_pipe(have.path)
    assert check_stored_weights(have) is CheckpointStatus.OTHER
    with pytest.raises(ModelError, match="not a regular file"):
        sha256_of(have.path)


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
        f"no file on this machine has the weights of {NAME}: {have.path} has SHA-256 {sha256(OTHER)}, but the"
        f" recorded digest is {sha256(ONE)}"
    )
    assert caught.value.hint == f"when online: mf download {NAME}; or place the file at {have.path}"


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
    assert caught.value.hint == (f"to accept the new file: mf download {NAME} with expect_sha256={sha256(OTHER)}")


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


def test_the_artifact_of_a_download_outlives_its_checkpoint(hub: Hub, settings: Settings) -> None:
    artifact = ensure_artifact(TINY, None, settings)
    assert artifact.source_url == HUB + PAPER
    assert artifact.labels[0].wnid == "n01440764"
    have = cache_of(settings).find()
    assert have is not None
    assert artifact.checkpoint == have.path
    requests = len(hub.log)
    assert ensure_artifact(TINY, None, settings) == artifact
    have.path.unlink()
    assert ensure_artifact(TINY, None, settings) == dataclasses.replace(artifact, checkpoint=None)
    assert len(hub.log) == requests
    sidecar = json.loads(have.path.with_name(f"{NAME}.pth.json").read_text())
    assert sidecar["sha256"] == artifact.weights_sha256
    artifact.path.unlink()
    assert ensure_artifact(TINY, None, settings) == artifact
    assert len(hub.log) > requests


def test_a_corrupted_checkpoint_is_replaced(hub: Hub, settings: Settings) -> None:
    have = get(settings)
    data = bytearray(hub.files[PAPER])
    data[len(data) // 2] ^= 255
    have.path.write_bytes(data)
    artifact = ensure_artifact(TINY, None, settings)
    assert artifact.weights_sha256 == sha256(hub.files[PAPER])
    assert have.path.read_bytes() == hub.files[PAPER]


def test_the_requested_digest_is_compared_when_a_damaged_checkpoint_is_replaced(hub: Hub, settings: Settings) -> None:
    have = get(settings)
    have.path.write_bytes(ONE[:-1] + b"x")
    hub.files[PAPER] = make_pth(3)  # another version by now
    with pytest.raises(ModelError, match="but the requested digest is"):
        ensure_artifact(TINY, None, settings, fetch=FetchOptions(expect_sha256=sha256(ONE)))


def list_tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()}


def test_resolving_writes_and_requests_nothing(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    offline = dataclasses.replace(settings, offline=True)
    (tmp_path / "x.pth").write_bytes(ONE)
    (tmp_path / "ten.pth").write_bytes(make_pth(num_classes=10))
    origin = FetchOptions(origin=str(tmp_path / "x.pth"))
    assert isinstance(resolve(TINY, offline).step, Missing)
    assert isinstance(resolve(TINY, settings).step, Fetch)
    assert isinstance(resolve(TINY, settings, FetchOptions(origin=str(tmp_path / "ten.pth"))).step, Missing)
    target = cache_of(settings).manual_path
    assert resolve(TINY, settings, origin).step == Copy(tmp_path / "x.pth", sha256(ONE), len(ONE), target)
    assert not settings.cache_dir.exists()
    stored = carry_out(resolve(TINY, settings, origin), lambda _: None)
    os.utime(stored.path, (0, 0))
    before = list_tree(tmp_path)
    plan = resolve(TINY, offline)
    assert (plan.step, plan.refused) == (Use(stored), ())
    assert isinstance(resolve(TINY, offline, FetchOptions(expect_sha256="1" * 64)).step, Missing)
    assert isinstance(resolve(TINY, settings, FetchOptions(force=True)).step, Fetch)
    stored.path.unlink()
    assert isinstance(resolve(TINY, offline).step, Use)  # its artifact may be there
    assert isinstance(resolve(TINY, offline, FetchOptions(keep=True)).step, Missing)
    assert isinstance(resolve(TINY, settings, FetchOptions(keep=True)).step, Fetch)
    stored.path.write_bytes(make_pth(num_classes=10))
    plan = resolve(TINY, offline)
    assert isinstance(plan.step, Missing)
    assert [path for path, _ in plan.refused] == [stored.path]
    del before[str(stored.path)]
    assert list_tree(tmp_path).items() >= before.items()
    assert not hub.log


def test_plans_of_racing_processes_download_once(hub: Hub, settings: Settings) -> None:
    plans = [resolve(TINY, settings) for _ in range(3)]
    assert all(isinstance(plan.step, Fetch) for plan in plans)
    assert len({carry_out(plan, lambda _: None).date for plan in plans}) == 1
    assert len(hub.gets) == 1


def test_a_head_of_other_classes_is_not_the_published_one(hub: Hub, settings: Settings, tmp_path: Path) -> None:
    for file, data in ("ten.pth", make_pth(num_classes=10)), ("ten.safetensors", make_safetensors(num_classes=10)):
        (tmp_path / file).write_bytes(data)
        hub.files[f"/{file}"] = data
        for origin in str(tmp_path / file), f"{hub.endpoint}/{file}":
            with pytest.raises(ModelError, match=f"has a head of 10 classes instead of the 1000 of {NAME}") as caught:
                get(settings, FetchOptions(origin=origin))
            assert caught.value.hint == "use it with mf predict: weights=FILE"
    assert cache_of(settings).find() is None


def test_a_wrong_header_leads_to_the_next_source_before_the_body(hub: Hub, settings: Settings) -> None:
    others = {f"x{i}": np.zeros(10**5, np.float32) for i in range(10)}
    hub.files[PAPER] = make_safetensors(1, others=others)
    hub.behaviour = Behaviour(bytes_per_s=4_000_000)
    told: list[Any] = []
    assert get(settings, told=told).path.read_bytes() == OTHER
    assert f"{PAPER} is not the checkpoint: it does not fit {NAME}: 10 unexpected, first x0" in " ".join(map(str, told))
    assert hub.sent < len(OTHER) + len(hub.files[PAPER]) // 2
    assert not list((settings.cache_dir / "partial").iterdir())


def test_tensors_of_integers_are_refused(hub: Hub, settings: Settings) -> None:
    hub.files["/x"] = make_safetensors(1, others={"norm.bias": np.zeros(16, np.int32)})
    with pytest.raises(ModelError, match="norm.bias as I32; weights are dense floats"):
        get(settings, FetchOptions(origin=f"{hub.endpoint}/x"))


def test_a_flipped_bit_in_a_local_file_is_detected(settings: Settings, tmp_path: Path) -> None:
    data = bytearray(ONE)
    data[len(data) // 2] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ModelError, match="does not have its checksum"):
        get(settings, FetchOptions(origin=str(tmp_path / "x.pth")))

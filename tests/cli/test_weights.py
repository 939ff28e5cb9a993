"""mf download, mf cache, and predictions that download, against a hub on loopback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from conftest import AFTER_CTRL_C, Ran
from deterministic import fill
from hub_server import Behaviour, Hub
from mfcli import create_model
from mfcli.artifact.file import update_sidecar
from mfcli.files import sha256_of
from mfcli.hub.cache import ModelCache
from mfcli.models.registry import find_variant

Mf = Callable[..., Ran]
NAME = "poolformerv2_s12"
PATH = f"/sail/dl/resolve/main/poolformerv2/{NAME}.pth"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the smallest published model: 48 MB."""
    path = tmp_path_factory.mktemp("published") / f"{NAME}.pth"
    torch.save(fill(create_model(NAME)).state_dict(), path)
    return path


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({PATH: checkpoint.read_bytes()}) as server:
        monkeypatch.setenv("MF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        monkeypatch.setenv("TORCH_HOME", "/nonexistent")
        yield server


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mfcli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_rows_are_not_written_to_the_progress_display(mf_terminal: Mf, coffee: Path) -> None:
    first = mf_terminal("predict", coffee, coffee, "-m", NAME, "--format", "jsonl", "-k", "1")
    assert (first.code, NAME in first.err) == (0, True)
    assert [json.loads(line)["status"] for line in first.out.splitlines()] == ["ok", "ok"]
    assert " MB" in first.err
    assert '"status"' not in first.err


@pytest.mark.slow
def test_the_first_prediction_downloads_and_the_next_does_not(mf: Mf, hub: Hub, coffee: Path) -> None:
    first = mf("predict", coffee, "-m", NAME, "--format", "jsonl")
    assert first.code == 0, first.err
    assert first.err.splitlines() == [
        f"note: downloading {NAME} ({len(hub.files[PATH]) / 1e6:.1f} MB)",
        f"note: preparing {NAME} (once for these weights)",
    ]
    requests = len(hub.log)
    second = mf("predict", coffee, "-m", NAME, "--format", "jsonl")
    assert (second.code, second.out, second.err) == (0, first.out, "")
    assert len(hub.log) == requests
    offline = mf("predict", coffee, "-m", f"{NAME}.sail_in1k", "--format", "jsonl", "--offline")
    assert offline.out == first.out
    listed = json.loads(mf("list-models", "--downloaded", "--format", "json").out)
    assert [row["name"] for row in listed] == ["convformer_t8_64", NAME]
    told = json.loads(mf("info", NAME, "--format", "json").out)
    assert told["weights"]["is_here"]
    assert told["weights"]["url"] == hub.endpoint + PATH
    assert told["artifacts"][0]["weights_sha256"] == told["weights"]["sha256"]
    assert (told["other_artifacts"], told["plan"]) == ([], f"use {told['weights']['path']}")
    assert f"weights_url {hub.endpoint}" in " ".join(mf("info", NAME).out.split())
    torch_engine = mf("predict", coffee, "-m", NAME, "--format", "jsonl", "--engine", "torch")
    assert torch_engine.code == 0
    assert mf("predict", coffee, "-m", NAME, "--input-size", "96").code == 0
    resized = json.loads(mf("info", NAME, "--format", "json").out)
    assert (resized["artifacts"], len(resized["other_artifacts"])) == (told["artifacts"], 1)


@pytest.mark.slow
def test_comparisons_with_torch(mf: Mf, hub: Hub, own_cache: Path) -> None:
    def show_proof() -> str:
        return str(json.loads(mf("info", NAME, "--format", "json").out)["artifacts"][0]["proof"])

    assert mf("download", NAME).code == 0
    assert show_proof() == "parameter table and finite logits"
    assert "artifact_check" not in mf("info", NAME).out
    verified = mf("cache", "verify", "--against-torch", "--format", "json")
    checkpoint, artifact = json.loads(verified.out)
    assert (verified.code, checkpoint["difference"]) == (0, None)
    assert 0 < artifact["difference"] < 1e-4
    requests = len(hub.log)
    checked = mf("download", NAME, "--check")
    assert (checked.code, checked.err) == (0, f"note: preparing {NAME} (once for these weights)\n")
    assert len(hub.log) == requests
    assert show_proof() == "compared with torch"
    assert "artifact_proof" in mf("info", NAME).out
    assert (mf("download", NAME, "--check").err, mf("download", NAME).err) == ("", "")
    change_one_weight(Path(artifact["path"]))
    assert mf("cache", "verify").code == 0
    different = mf("cache", "verify", "--against-torch", "--format", "json")
    assert (different.code, [row["status"] for row in json.loads(different.out)]) == (9, ["good", "bad"])
    assert "differs from torch by" in different.out
    assert "1 of 2 files are damaged or differ from torch" in different.err
    (own_cache / "checkpoints" / NAME / f"{NAME}.pth").unlink()
    alone = mf("cache", "verify", "--against-torch", "--format", "json")
    assert (alone.code, json.loads(alone.out)[0]["difference"]) == (0, None)


def change_one_weight(path: Path) -> None:
    """Write an intact artifact of other weights under the same key."""
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    path.write_bytes(model.SerializeToString())
    status = path.stat()
    update_sidecar(path, sha256=sha256_of(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def test_one_files_artifact_is_listed_and_deleted(mf: Mf, own_cache: Path, tmp_path: Path, coffee: Path) -> None:
    for name in "ab":
        torch.save(create_model("bundled", num_classes=3).state_dict(), tmp_path / f"{name}.pth")
        assert mf("predict", coffee, "--weights", tmp_path / f"{name}.pth", "-q").code == 0
    rows = {row["origins"][0]: row["path"] for row in json.loads(mf("cache", "ls", "--format", "json").out)}
    assert rows.keys() == {str(tmp_path / f"{name}.pth") for name in "ab"}
    (tmp_path / "a.pth").unlink()
    ran = mf("cache", "rm", tmp_path / "a.pth")
    assert rows[str(tmp_path / "a.pth")] in ran.out
    assert ran.err.startswith("note: 1 file deleted, ")
    assert list((own_cache / "artifacts").glob("*.onnx")) == [Path(rows[str(tmp_path / "b.pth")])]
    assert mf("cache", "rm", rows[str(tmp_path / "b.pth")]).code == 0
    assert not list((own_cache / "artifacts").glob("*.onnx"))
    assert mf("cache", "rm", tmp_path / "b.pth").code == 4


@pytest.mark.slow
def test_cache_commands(mf: Mf, hub: Hub, own_cache: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mf("cache", "path").out == f"{own_cache}\n"
    header = "kind,model,size_bytes,sha256,path,origins,date\n"
    assert mf("cache", "ls", "--format", "csv").out == header
    assert mf("cache", "verify", "--format", "tsv").out.split() == ["status", *header.strip().split(","), "problem"]
    assert mf("download", NAME).code == 0
    rows = json.loads(mf("cache", "ls", "--format", "json").out)
    assert [(row["kind"], row["model"]) for row in rows] == [("checkpoint", NAME), ("artifact", NAME)]
    assert rows[0]["size_bytes"] == len(hub.files[PATH])
    assert [row["origins"] for row in rows] == [[hub.endpoint + PATH]] * 2
    assert all(row["date"].startswith("20") for row in rows)
    assert mf("cache", "verify").code == 0
    with monkeypatch.context() as later:
        later.setattr("mfcli.artifact.file.FORMAT_VERSION", 999)
        stale = mf("cache", "verify", "--format", "json")
        assert (stale.code, [row["status"] for row in json.loads(stale.out)]) == (0, ["good", "stale"])
    before = mf("predict", coffee, "-m", NAME, "--format", "csv", "--offline").out
    dry = mf("cache", "prune", "--checkpoints", "--dry-run", "--format", "json")
    assert [row["kind"] for row in json.loads(dry.out)] == ["checkpoint"]
    assert "would be deleted" in dry.err
    assert Path(rows[0]["path"]).exists()
    pruned = mf("cache", "prune", "--checkpoints")
    assert "predictions still work; --engine torch, another --input-size and later versions" in pruned.err
    assert not Path(rows[0]["path"]).exists()
    assert mf("predict", coffee, "-m", NAME, "--format", "csv", "--offline").out == before
    for arguments in (("--engine", "torch"), ("--input-size", "96")):
        assert "mf download" in mf("predict", coffee, "-m", NAME, "--offline", *arguments).err
    assert mf("download", NAME, "--offline").code == 4
    assert mf("download", NAME).code == 0
    assert Path(rows[0]["path"]).exists()
    artifact = Path(rows[1]["path"])
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    artifact.write_bytes(data)
    bad = mf("cache", "verify", "--format", "json")
    assert (bad.code, [row["status"] for row in json.loads(bad.out)]) == (9, ["good", "bad"])
    assert f"hint: delete, and the next prediction rebuilds it: rm {artifact}" in bad.err
    with Path(rows[0]["path"]).open("ab") as checkpoint:
        checkpoint.write(b"x")
    assert f"hint: download again: mf download --force {NAME}" in mf("cache", "verify").err
    assert mf("download", NAME, "--force", "-q").code == 0
    assert mf("cache", "verify").code == 0
    assert mf("cache", "rm", "poolformer*", "--dry-run", "-q").code == 0
    timm = mf("cache", "rm", f"timm/{NAME}.sail*", "--dry-run", "--format", "json").out
    assert {row["model"] for row in json.loads(timm)} == {NAME}
    assert artifact.exists()
    assert mf("cache", "rm", NAME).code == 0
    assert mf("cache", "ls", "--format", "csv").out == header
    for name in "resnet50", "resnet*":
        assert mf("cache", "rm", name).code == 4
    assert mf("cache", "rm", "poolformer*").code == 0  # no files of them, but there are such models


def test_prune_deletes_only_its_own_temporary_files(mf: Mf, own_cache: Path) -> None:
    kept = [own_cache / name for name in (".env", "project/.gitignore", "artifacts/.notes", "partial/young.part")]
    gone = [
        own_cache / name for name in ("artifacts/.x.onnx.123-0a1b2c3d", "partial/old.part", "artifacts/stale-1.onnx")
    ]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        if path.name != "young.part":
            os.utime(path, (0, 0))
    ran = mf("cache", "prune", "--format", "json")
    assert sorted(row["path"] for row in json.loads(ran.out)) == sorted(map(str, gone))
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_a_pinned_model(mf: Mf, tmp_path: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mf("download", NAME, "--pin").code == 0
    lock = json.loads((tmp_path / "mf.lock").read_text())
    assert lock["models"][NAME]["sha256"] == sha256_of(
        Path(json.loads(mf("info", NAME, "--format", "json").out)["weights"]["path"])
    )
    assert mf("predict", coffee, "--model", NAME).code == 0
    lock["models"][NAME]["sha256"] = "0" * 64
    (tmp_path / "mf.lock").write_text(json.dumps(lock))
    ran = mf("predict", coffee, "--model", NAME)
    assert (ran.code, "the pinned digest in mf.lock is 000" in ran.err) == (4, True)


def test_what_cannot_be_pinned(mf: Mf) -> None:
    assert mf("download", NAME, "--pin", "--dry-run").code == 2
    assert "is pinned by the version of the package" in mf("download", "bundled", "--pin").err


@pytest.mark.slow
def test_download_plans_and_failures(mf: Mf, hub: Hub, tmp_path: Path) -> None:
    planned = json.loads(mf("download", "poolformerv2_s*", "--dry-run", "--format", "json").out)
    assert [row["name"] for row in planned] == ["poolformerv2_s12", "poolformerv2_s24", "poolformerv2_s36"]
    assert [row["status"] for row in planned] == ["wanted", "failed", "failed"]
    assert planned[0]["size_bytes"] == len(hub.files[PATH])
    assert planned[0]["url"] == hub.endpoint + PATH
    assert not hub.gets
    offline = mf("download", "poolformerv2_s24", "--offline")
    assert offline.code == 4
    assert f"or place the file at {os.environ['MF_CACHE_DIR']}/checkpoints/poolformerv2_s24/" in offline.err
    missing = mf("download", "poolformerv2_s24", "--format", "csv")
    assert missing.code == 4
    assert "cannot fetch poolformerv2_s24 from any source: " in missing.err
    named = json.loads(mf("download", "timm/PoolFormerV2_s*.sail_in1k", "--dry-run", "--format", "json").out)
    assert [row["name"] for row in named] == [row["name"] for row in planned]
    assert mf("download", "a*", "--dry-run").code == 4
    assert mf("download", NAME, "--expect-sha256", "xyz").code == 2
    assert mf("download", "poolformerv2_*", "--from", str(tmp_path)).code == 2
    assert mf("download", "poolformerv2_*", "--from", str(tmp_path), "--dry-run").code == 2
    assert mf("download", "poolformerv2_s24", "--offline", "--dry-run").code == 4
    (tmp_path / "wrong.pth").write_text("hello")
    for more in ((), ("--dry-run",)):
        wrong = mf("download", NAME, "--from", tmp_path / "wrong.pth", *more, "--format", "json")
        assert (wrong.code, json.loads(wrong.out)[0]["status"]) == (4, "failed")
        assert "is not a checkpoint" in wrong.err
    assert json.loads(mf("info", NAME, "--format", "json").out)["weights"] is None
    hub.files["/mirror/wrong.pth"] = b"hello"
    assert mf("download", NAME, "--from", f"{hub.endpoint}/mirror/wrong.pth").code == 4
    assert json.loads(mf("info", NAME, "--format", "json").out)["weights"] is None
    local = tmp_path / "local.pth"
    local.write_bytes(hub.files[PATH])
    gets = len(hub.gets)
    planned = json.loads(mf("download", NAME, "--from", local, "--dry-run", "--format", "json").out)
    assert (planned[0]["status"], planned[0]["size_bytes"]) == ("wanted", len(hub.files[PATH]))
    assert mf("download", NAME, "--from", local, "--offline").code == 0
    assert json.loads(mf("info", NAME, "--format", "json").out)["weights"]["is_here"]
    assert len(hub.gets) == gets
    ready = json.loads(mf("download", "bundled", "--format", "json").out)
    assert (ready[0]["status"], len(hub.gets)) == ("ready", gets)


@pytest.mark.slow
def test_a_head_of_other_classes_is_for_weights_alone(mf: Mf, own_cache: Path, tmp_path: Path, coffee: Path) -> None:
    ten = tmp_path / "ten.pth"
    torch.save(fill(create_model(NAME, num_classes=10)).state_dict(), ten)
    for more in ((), ("--dry-run",)):
        refused = mf("download", NAME, "--from", ten, "--offline", *more)
        assert refused.code == 4
        assert f"error: {ten} has a head of 10 classes instead of the 1000 of {NAME}" in refused.err
        assert "hint: use it with mf predict: --weights FILE" in refused.err
    assert not list(own_cache.rglob("*.pth"))
    assert mf("predict", coffee, "-m", NAME, "--weights", ten, "-q", "--format", "jsonl").code == 0
    told = json.loads(mf("info", NAME, "--format", "json").out)
    assert (told["weights"], told["artifacts"]) == (None, [])
    (other,) = told["other_artifacts"]
    assert other["classes"] == 10
    assert f"other_artifacts {other['path']}" in " ".join(mf("info", NAME).out.split())


def test_the_row_of_a_failed_model_names_its_source(mf: Mf, hub: Hub, own_cache: Path, tmp_path: Path) -> None:
    row = json.loads(mf("download", "poolformerv2_s24", "--format", "json").out)[0]
    assert row["status"] == "failed"
    assert row["url"].startswith(f"{hub.endpoint}/sail/dl/")
    assert row["path"] == f"{own_cache}/checkpoints/poolformerv2_s24/poolformerv2_s24.pth"
    os.mkfifo(tmp_path / "pipe")
    for name, reason in ("pipe", "is not a regular file"), ("none", "No such file or directory"):
        asked = mf("download", NAME, "--from", tmp_path / name, "--dry-run", "--format", "json")
        assert asked.code == 4
        assert reason in asked.err
        assert json.loads(asked.out)[0]["url"] == str(tmp_path / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
        patch.setenv("MF_ENDPOINT", "https://127.0.0.1:9")
        untrusting = mf("download", NAME, "--dry-run")
        assert (untrusting.code, "REQUESTS_CA_BUNDLE names" in untrusting.err) == (4, True)
    (tmp_path / "x.pth").write_bytes(b"x")
    for origin in (("--from", tmp_path / "x.pth"), ()):
        other = mf("download", NAME, *origin, "--expect-sha256", "1" * 64, "--dry-run", "--format", "json")
        assert (other.code, json.loads(other.out)[0]["status"]) == (4, "failed")
        assert "but the requested digest is 1111" in other.err
    assert not hub.gets


def test_the_errors_of_several_models_come_in_their_order(mf: Mf) -> None:
    names = ["poolformerv2_s12", "poolformerv2_s24", "poolformerv2_s36"]
    assert re.findall("error: the weights of ([^ ]*)", mf("download", *names, "--offline").err) == names


def test_a_dry_run_fails_where_the_download_would(mf: Mf, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.http.BACKOFF_S", 0.001)
    monkeypatch.setenv("MF_ENDPOINT", "http://127.0.0.1:9")  # no server there: the second source is not tried
    place = ModelCache(own_cache, find_variant(NAME)).manual_path
    for more, error, retries in (
        ([], "error: gave up on http://127.0.0.1:9/sail/dl/", 4),
        (["--dry-run"], "error: cannot request http://127.0.0.1:9/sail/dl/", 0),
    ):
        asked = mf("download", NAME, *more, "--format", "json")
        assert (asked.code, asked.err.count(error), asked.err.count("; retrying in")) == (4, 1, retries)
        assert asked.err.endswith(f"; or place the file at {place}\n")


@pytest.mark.slow
def test_nothing_is_fetched_again_offline(mf: Mf, hub: Hub) -> None:
    assert mf("download", NAME, "-q").code == 0
    for more, hint in (
        (["--force"], "to use the cached file: omit --force"),
        (["--from", "http://127.0.0.1:9/x.pth"], "a local file: "),
    ):
        for plan in ([], ["--dry-run"]):
            asked = mf("download", NAME, *more, *plan, "--offline", "--format", "json")
            assert (asked.code, f"error: cannot fetch {NAME} while offline" in asked.err, hint in asked.err) == (
                4,
                True,
                True,
            )
            assert json.loads(asked.out)[0]["url"] == (more[1] if more[1:] else hub.endpoint + PATH)
    assert mf("predict", "-", "-m", NAME, "--offline", "-q").code == 6  # the weights are still there


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_a_model_whose_folder_cannot_be_created_does_not_stop_the_others(mf: Mf, own_cache: Path) -> None:
    (own_cache / "checkpoints").mkdir()
    (own_cache / "checkpoints" / "poolformer_s12").touch()
    ran = mf("download", "poolformer_s12", NAME, "--format", "json")
    assert (ran.code, [row["status"] for row in json.loads(ran.out)]) == (8, ["failed", "ready"])
    assert "error: cannot write to the cache" in ran.err


def test_the_bundled_model_is_never_fetched(mf: Mf, tmp_path: Path) -> None:
    ready = json.loads(mf("download", "bundled", "--format", "json").out)[0]
    assert mf("download", "bundled", "--expect-sha256", ready["sha256"]).code == 0
    for more in ((), ("--dry-run",)):
        other = mf("download", "bundled", "--expect-sha256", "1" * 64, *more)
        assert other.code == 4
        assert f"has SHA-256 {ready['sha256']}, but the requested digest is 1111" in other.err
        for origin, digest in (("", "1" * 64), ("x.pth", "")):  # like unset variables in a script
            empty = mf("download", NAME, "--from", origin, "--expect-sha256", digest, *more)
            assert (empty.code, "is empty" in empty.err or "is not a SHA-256" in empty.err) == (2, True)
        taken = mf("download", "bundled", "--from", tmp_path, *more)
        assert taken.code == 2
        assert "mf predict: --weights FILE" in taken.err


def test_a_manual_file_is_new_before_its_first_use(mf: Mf, own_cache: Path, checkpoint: Path) -> None:
    place = own_cache / "checkpoints" / NAME / f"{NAME}.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    found = mf("cache", "verify", "--format", "json")
    assert (found.code, json.loads(found.out)[0]["status"]) == (0, "new")
    planned = mf("download", NAME, "--dry-run", "--offline", "--format", "json")
    assert (planned.code, f"no file on this machine has the weights of {NAME}: {place}" in planned.err) == (4, True)
    shutil.copyfile(checkpoint, place)
    row = json.loads(mf("download", NAME, "--dry-run", "--offline", "--format", "json").out)[0]
    assert (row["status"], row["url"], row["size_bytes"]) == ("wanted", str(place), checkpoint.stat().st_size)
    assert json.loads(mf("info", NAME, "--format", "json").out)["plan"] == f"use {place}"
    place.with_name(f"{NAME}.pth.json").write_text("{")
    damaged = mf("cache", "verify", "--format", "json")
    assert (damaged.code, json.loads(damaged.out)[0]["status"]) == (9, "bad")


@pytest.mark.slow
def test_a_file_that_replaces_a_manual_file_is_new(mf: Mf, hub: Hub, own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(hub.files[PATH])
    assert mf("download", NAME, "--from", tmp_path / "x.pth", "-q").code == 0
    wrong = mf("download", NAME, "--expect-sha256", "1" * 64, "--dry-run")
    assert (wrong.code, "fetch it again: --force" in wrong.err) == (4, True)
    place = own_cache / "checkpoints" / NAME / f"{NAME}.pth"
    torch.save(create_model(NAME).state_dict(), place)

    def statuses() -> list[str]:
        return [row["status"] for row in json.loads(mf("cache", "verify", "--format", "json").out)]

    assert statuses() == ["new", "good"]
    assert mf("cache", "prune", "--checkpoints", "-q").code == 0
    assert statuses() == ["new", "good"]  # the artifact is that of the previous file
    planned = json.loads(mf("download", NAME, "--dry-run", "--offline", "--format", "json").out)[0]
    assert (planned["status"], planned["url"]) == ("wanted", str(place))
    assert mf("download", NAME, "--offline", "-q").code == 0
    assert statuses() == ["good", "good", "good"]  # the artifact of the first file is still there
    assert not hub.gets


def test_folders_in_the_cache_are_ignored(mf: Mf, own_cache: Path) -> None:
    row = own_cache / "checkpoints" / NAME
    for folder in (row / "a folder", row / "x.json", own_cache / "artifacts" / "x-1.onnx"):
        folder.mkdir(parents=True)
    (row / "z.pth").write_bytes(b"x")
    (row.parent / "unknown").mkdir()
    (row.parent / "unknown" / "y.pth").symlink_to("nowhere")
    (own_cache / "partial" / "x.part").mkdir(parents=True)
    rows = json.loads(mf("cache", "ls", "--format", "json").out)
    assert [Path(row["path"]).name for row in rows] == ["z.pth", "y.pth"]
    bad = mf("cache", "verify")
    assert bad.code == 9
    assert f"hint: delete files of unknown models: rm {row.parent}/unknown/y.pth" in bad.err
    assert mf("cache", "rm", NAME).code == 0
    assert not (row / "z.pth").exists()
    assert mf("cache", "prune").code == 0


def test_a_file_that_cannot_be_deleted_does_not_stop_the_others(
    mf: Mf, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = own_cache / "checkpoints" / NAME
    row.mkdir(parents=True)
    for name in ("a.pth", "z.pth"):
        (row / name).write_bytes(b"x")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a.pth":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    ran = mf("cache", "rm", NAME, "--format", "json")
    assert (ran.code, [Path(entry["path"]).name for entry in json.loads(ran.out)]) == (8, ["z.pth"])
    assert (
        f"error: cannot delete {row}/a.pth: Permission denied\nhint: see who may write there: ls -ld {row}" in ran.err
    )


@pytest.mark.slow
def test_ten_processes_download_and_prepare_once(hub: Hub, coffee: Path) -> None:
    hub.behaviour = Behaviour(bytes_per_s=30_000_000)
    processes = [start("predict", coffee, "-m", NAME, "--format", "csv") for _ in range(10)]
    ran = [(process.communicate(timeout=250), process.returncode) for process in processes]
    assert [code for _, code in ran] == [0] * 10
    assert len({out for (out, _), _ in ran}) == 1
    assert len(hub.gets) == 1
    downloaded = ["note: downloading" in err for (_, err), _ in ran]
    waited = ["note: waiting for another process" in err for (_, err), _ in ran]
    assert downloaded.count(True) == 1
    assert all(said for said, first in zip(waited, downloaded, strict=True) if not first)  # the first may wait too
    assert sum("note: preparing" in err for (_, err), _ in ran) == 1


@pytest.mark.slow
def test_a_killed_download_is_resumed(hub: Hub, own_cache: Path) -> None:
    hub.behaviour = Behaviour(bytes_per_s=20_000_000)
    size = len(hub.files[PATH])
    process = start("download", NAME)
    wait_for(lambda: sum(p.stat().st_size for p in own_cache.glob("partial/*.part")) > size // 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    hub.behaviour = Behaviour()
    done = start("download", NAME)
    assert done.wait(timeout=120) == 0, done.communicate()
    assert [status for _, _, status in hub.gets] == [200, 206]
    assert hub.sent <= 1.05 * size + 2_000_000  # plus what was in the sockets when it was killed


@pytest.mark.slow
def test_a_killed_build_is_repeated(hub: Hub, own_cache: Path, coffee: Path) -> None:
    process = start("predict", coffee, "-m", NAME)
    wait_for(lambda: list(own_cache.glob("artifacts/*.lock")))
    process.kill()
    process.communicate()
    assert not list(own_cache.glob("artifacts/*.json"))
    done = start("predict", coffee, "-m", NAME, "--format", "csv", "--offline")
    out, err = done.communicate(timeout=120)
    assert (done.returncode, out.count(",ok,")) == (0, 1), err
    assert len(hub.gets) == 1


def test_an_interrupted_download_prints_nothing_and_keeps_its_bytes(hub: Hub, own_cache: Path) -> None:
    hub.behaviour = Behaviour(bytes_per_s=20_000_000)
    process = start("download", NAME, "-q")
    wait_for(lambda: list(own_cache.glob("partial/*.part")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode in AFTER_CTRL_C, err) == (True, "")
    assert list(own_cache.glob("partial/*.part"))

"""Artifacts: built once, self-describing, compared with torch, and rebuilt if damaged, foreign or stale."""

import dataclasses
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from deterministic import fill, pixels
from mfcli import create_model
from mfcli.artifact import build as building
from mfcli.artifact import file as artifact_file
from mfcli.artifact import graph
from mfcli.artifact.build import MAX_LOGIT_DIFFERENCE, build_artifact
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import artifact_key, open_artifact
from mfcli.errors import ModelError, OutputError
from mfcli.files import sha256_of
from mfcli.hub.bundled import bundled_file
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import EngineName
from mfcli.models.checkpoint import write_random
from mfcli.models.labels import make_numbered_labels
from mfcli.models.metaformer import build_model
from mfcli.models.registry import Family, Variant, find_variant, list_variants
from mfcli.settings import Settings

BUNDLED = find_variant("bundled")


def use_cache(cache: Path, *, compare: bool = False) -> Settings:
    return Settings(model="bundled", named_cache_dir=cache, debug=False, compare=compare)


@pytest.fixture(scope="module")
def built(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the artifact of the small weights."""
    cache = tmp_path_factory.mktemp("built")
    ensure_artifact(BUNDLED, small_weights, use_cache(cache, compare=True))
    return cache


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may damage."""
    return shutil.copytree(built, tmp_path / "cache")


def forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("the artifact was built again")

    monkeypatch.setattr(building, "build_artifact", no)


def test_a_second_start_builds_nothing(cache: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_building(monkeypatch)
    told: list[object] = []
    artifact = ensure_artifact(BUNDLED, small_weights, use_cache(cache, compare=True), told.append)
    assert not told
    assert artifact == ensure_artifact(BUNDLED, small_weights, use_cache(cache), told.append)
    assert artifact.variant == "convformer_t8_64"
    assert artifact.weights_sha256 == sha256_of(small_weights)
    assert artifact.labels == make_numbered_labels(7)
    assert artifact.checkpoint == small_weights
    assert artifact.key == artifact_key(BUNDLED, artifact.weights_sha256)
    assert artifact.plan.crop_size == (64, 64)
    assert set(artifact.check) == {"batch_1", "batch_3"}
    assert max(artifact.check.values()) < 1e-4
    assert "torch" in artifact.versions


def test_an_artifact_without_a_comparison_is_built_again_if_one_is_asked_for(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ensure_artifact(BUNDLED, small_weights, use_cache(tmp_path))
    assert (alone.check, set(alone.versions)) == ({}, {"mfcli", "numpy", "onnx", "onnxruntime"})
    told: list[object] = []
    compared = ensure_artifact(BUNDLED, small_weights, use_cache(tmp_path, compare=True), told.append)
    assert told == ["preparing convformer_t8_64 (once for these weights)"]
    assert set(compared.check) == {"batch_1", "batch_3"}
    assert (compared.path, compared.key) == (alone.path, alone.key)
    forbid_building(monkeypatch)
    assert ensure_artifact(BUNDLED, small_weights, use_cache(tmp_path)) == compared


def test_the_same_checkpoint_gives_the_same_bytes(small_weights: Path, tmp_path: Path) -> None:
    first, second = (ensure_artifact(BUNDLED, small_weights, use_cache(tmp_path / name)).path for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def onnx_without_metadata(path: Path) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


def test_the_file_is_self_describing(cache: Path, small_weights: Path) -> None:
    (path,) = (cache / "artifacts").glob("*.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    (input_,), (output,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (input_, output)]
    assert (input_.name, output.name) == ("input", "logits")
    assert shapes == [["N", 3, 64, 64], ["N", 7]]
    sidecar = json.loads(path.with_suffix(".json").read_text())
    (origin,) = sidecar.pop("origins").values()
    assert (origin["origin"], datetime.fromisoformat(origin["date"]).tzinfo) == (str(small_weights), UTC)
    assert sidecar == {
        "graph_sha256": hashlib.sha256(onnx_without_metadata(path)).hexdigest(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
        "mtime_ns": path.stat().st_mtime_ns,
    }
    assert {p.key for p in model.metadata_props} == {
        f"mfcli.{name}"
        for name in [
            "format_version",
            "variant",
            "key",
            "weights_sha256",
            "source_url",
            "preprocess",
            "labels",
            "versions",
            "check",
        ]
    }
    assert str(Path(artifact_file.__file__).parent).encode() not in path.read_bytes()


def test_logits_equal_torch_at_any_batch_size(cache: Path, small_weights: Path) -> None:
    artifact = ensure_artifact(BUNDLED, small_weights, use_cache(cache))
    batch = pixels(5, 64).numpy()
    runtime = load_engine(EngineName.ONNXRUNTIME, artifact)
    expected = load_engine(EngineName.TORCH, artifact).logits(batch)
    assert expected.shape == (5, 7)
    assert np.abs(runtime.logits(batch) - expected).max() <= 1e-4 * expected.std()
    alone = np.concatenate([runtime.logits(batch[i : i + 1]) for i in range(5)])
    assert np.abs(alone - expected).max() <= 1e-4 * expected.std()


def test_the_bundled_artifact_is_small_and_equals_torch() -> None:
    artifact = ensure_artifact(BUNDLED, None, use_cache(Path("never touched")))
    assert artifact.size_bytes <= 12_000_000
    assert artifact.key == artifact_key(BUNDLED, artifact.weights_sha256, half_weights=True)
    assert artifact.checkpoint is not None
    assert sha256_of(artifact.checkpoint) == artifact.weights_sha256
    assert sha256_of(artifact.path) == json.loads(artifact.path.with_suffix(".json").read_text())["sha256"]
    batch = pixels(3, 64).numpy()
    expected = load_engine(EngineName.TORCH, artifact).logits(batch)
    assert np.abs(load_engine(EngineName.AUTO, artifact).logits(batch) - expected).max() <= 1e-4 * expected.std()
    assert not Path("never touched").exists()
    model = onnx.load(artifact.path)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(t.dims) for t in floats) < 0.01 * BUNDLED.params


def test_every_class_of_the_bundled_model_has_a_name() -> None:
    labels = ensure_artifact(BUNDLED, None, use_cache(Path("never touched"))).labels
    assert len(labels) == len({label.wnid for label in labels}) == 200
    assert all(label.name and label.name != label.wnid for label in labels)
    assert labels[0].name == "goldfish, Carassius auratus"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def replace_with_text(path: Path) -> None:
    path.write_text("not a model")
    path.with_suffix(".json").write_text(json.dumps({"size_bytes": len("not a model"), "sha256": ""}))


def replace_with_the_bundled_one(path: Path) -> None:
    other = bundled_file("convformer_t8_64.onnx")
    shutil.copy(other, path)
    shutil.copy(other.with_suffix(".json"), path.with_suffix(".json"))


def replace_with_a_foreign_model(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    rewrite(path, model)


def make_older(path: Path) -> None:
    model = onnx.load(path)
    next(p for p in model.metadata_props if p.key == "mfcli.format_version").value = "0"
    rewrite(path, model)


def rewrite(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".json").write_text(json.dumps({"size_bytes": path.stat().st_size, "sha256": ""}))


def change_one_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def nest_sidecar(path: Path) -> None:
    path.with_suffix(".json").write_text("[" * 20_000)


def replace_with_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_sidecar_with_a_pipe(path: Path) -> None:
    replace_with_a_pipe(path.with_suffix(".json"))


def remove_sidecar(path: Path) -> None:
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_touched_artifact_is_hashed_once(
    forgotten: bool, cache: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_building(monkeypatch)
    (path,) = (cache / "artifacts").glob("*.onnx")
    path.touch()
    if forgotten:
        sidecar = json.loads(path.with_suffix(".json").read_text())
        del sidecar["mtime_ns"]
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    hashed: list[Path] = []

    def count_hash(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(artifact_file, "sha256_of", count_hash)
    for _ in range(2):
        ensure_artifact(BUNDLED, small_weights, use_cache(cache))
    assert hashed == [path]


def test_opening_writes_nothing(cache: Path, small_weights: Path) -> None:
    (path,) = (cache / "artifacts").glob("*.onnx")
    path.touch()
    before = path.with_suffix(".json").read_bytes()
    open_artifact(path, BUNDLED, artifact_key(BUNDLED, sha256_of(small_weights)), None)
    assert path.with_suffix(".json").read_bytes() == before


def test_a_damaged_bundled_artifact_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact_file.bundled_is_intact(BUNDLED)
    for suffix in ("onnx", "json"):
        shutil.copy(bundled_file(f"{BUNDLED.name}.{suffix}"), tmp_path)
    monkeypatch.setattr(artifact_file, "bundled_file", lambda name: tmp_path / name)
    assert artifact_file.bundled_is_intact(BUNDLED)
    change_one_byte(tmp_path / f"{BUNDLED.name}.onnx")
    assert not artifact_file.bundled_is_intact(BUNDLED)
    (tmp_path / f"{BUNDLED.name}.json").unlink()
    (tmp_path / f"{BUNDLED.name}.onnx").unlink()
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be read") as caught:
            artifact_file.bundled_is_intact(BUNDLED)
        assert caught.value.hint == "install it again, in the checkout: pip install --force-reinstall --no-deps ."
        shutil.copy(bundled_file(f"{BUNDLED.name}.onnx"), tmp_path)  # the other file is still missing


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        append,
        replace_with_text,
        replace_with_the_bundled_one,
        replace_with_a_foreign_model,
        make_older,
        change_one_byte,
        remove_sidecar,
        nest_sidecar,
        replace_sidecar_with_a_pipe,
        replace_with_a_pipe,
    ],
)
def test_a_bad_artifact_is_built_again(
    damage: Any, built: Path, cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (cache / "artifacts").glob("*.onnx")
    damage(path)
    with pytest.raises(ModelError):
        open_artifact(path, BUNDLED, artifact_key(BUNDLED, sha256_of(small_weights)), None)
    told: list[object] = []

    def rebuild(*_: Any, **__: Any) -> None:
        for name in (path.name, path.with_suffix(".json").name):
            shutil.copy(built / "artifacts" / name, tmp_path / name)
            (tmp_path / name).replace(path.parent / name)

    monkeypatch.setattr(building, "build_artifact", rebuild)
    assert ensure_artifact(BUNDLED, small_weights, use_cache(cache), told.append).key in path.read_bytes().decode(
        errors="ignore"
    )
    assert told == ["preparing convformer_t8_64 (once for these weights)"]


def test_heads_of_one_class_and_of_equal_logits(tmp_path: Path) -> None:
    model = create_model("bundled", num_classes=1)
    torch.nn.init.constant_(model.get_parameter("head.weight"), 1e-30)  # zeros alone are refused
    torch.save(model.state_dict(), tmp_path / "x.pth")
    settings = use_cache(tmp_path, compare=True)
    assert ensure_artifact(BUNDLED, tmp_path / "x.pth", settings).labels == make_numbered_labels(1)
    torch.manual_seed(0)
    torch.save(create_model("bundled", num_classes=1).state_dict(), tmp_path / "y.pth")
    assert ensure_artifact(BUNDLED, tmp_path / "y.pth", settings).check["batch_1"] < 1e-4


@pytest.mark.slow
def test_changed_weights_at_the_same_path_make_another_artifact(cache: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.pth"
    torch.save(fill(create_model("bundled", num_classes=3)).state_dict(), weights)
    first = ensure_artifact(BUNDLED, weights, use_cache(cache))
    torch.save(create_model("bundled", num_classes=4).state_dict(), weights)
    second = ensure_artifact(BUNDLED, weights, use_cache(cache))
    assert first.key != second.key
    assert (len(first.labels), len(second.labels)) == (3, 4)


def test_weights_replaced_during_the_build(cache: Path, tmp_path: Path) -> None:
    weights, newer = tmp_path / "last.pth", tmp_path / "newer.pth"
    for path, classes in ((weights, 3), (newer, 4)):
        torch.save(fill(create_model("bundled", num_classes=classes)).state_dict(), path)
    before = {path.name for path in (cache / "artifacts").glob("*.onnx")}
    with pytest.raises(ModelError, match="changed while it was read"):
        ensure_artifact(BUNDLED, weights, use_cache(cache), lambda _: newer.replace(weights))  # type: ignore[arg-type]
    assert {path.name for path in (cache / "artifacts").glob("*.onnx")} == before
    assert len(ensure_artifact(BUNDLED, weights, use_cache(cache)).labels) == 4


def save_as(suffix: str, weights: Path, folder: Path) -> Path:
    """The same weights in another file."""
    path = folder / f"same.{suffix}"
    if suffix == "pth":
        torch.save({"model": torch.load(weights)}, path)
    else:
        save_file(torch.load(weights), path)
    return path


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_with_the_same_weights_share_an_artifact(
    suffix: str, cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure_artifact(BUNDLED, small_weights, use_cache(cache))
    same = save_as(suffix, small_weights, tmp_path)
    shared = ensure_artifact(BUNDLED, same, use_cache(cache))
    assert shared == dataclasses.replace(first, weights_sha256=sha256_of(same), checkpoint=same)
    origins = [origin["origin"] for origin in artifact_file.read_origins(first.path).values()]
    assert origins == [str(small_weights), str(same)]
    with monkeypatch.context() as patch:
        forbid_building(patch)
        assert ensure_artifact(BUNDLED, same, use_cache(cache)) == shared
        assert ensure_artifact(BUNDLED, small_weights, use_cache(cache)) == first
    assert len(list((cache / "artifacts").glob("*.onnx"))) == 1
    cut(first.path)  # the next file of these weights gets one of its own
    assert ensure_artifact(BUNDLED, same, use_cache(cache)).path != first.path


def test_files_with_the_same_weights_share_an_artifact_at_once(small_weights: Path, tmp_path: Path) -> None:
    files = [small_weights, *(save_as(suffix, small_weights, tmp_path) for suffix in ("pth", "safetensors"))]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda file: ensure_artifact(BUNDLED, file, use_cache(tmp_path)), files))
    assert len({artifact.path for artifact in found}) == 1


def test_an_artifact_of_the_version_before_is_used(
    cache: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (cache / "artifacts").glob("*.onnx")
    sidecar = json.loads(path.with_suffix(".json").read_text())
    older = {name: sidecar[name] for name in ("sha256", "size_bytes", "mtime_ns")}
    path.with_suffix(".json").write_text(json.dumps(older))
    with monkeypatch.context() as patch:
        forbid_building(patch)
        assert ensure_artifact(BUNDLED, small_weights, use_cache(cache)).path == path
    assert ensure_artifact(BUNDLED, save_as("pth", small_weights, tmp_path), use_cache(cache)).path != path


def test_the_key_covers_all_that_determines_the_graph() -> None:
    keys = {
        artifact_key(BUNDLED, "0" * 64),
        artifact_key(BUNDLED, "1" * 64),
        artifact_key(BUNDLED, "0" * 64, half_weights=True),
        artifact_key(find_variant("caformer_s18"), "0" * 64),
        artifact_key(find_variant("caformer_s18_384"), "0" * 64),
        artifact_key(BUNDLED.with_input_size(96, 96), "0" * 64),
    }
    assert len(keys) == 6


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    state = fill(create_model("bundled")).state_dict()
    state["head.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="produces NaN or infinite logits"):
        ensure_artifact(BUNDLED, tmp_path / "x.pth", use_cache(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_wrong_graph_is_refused(small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph = graph.write_graph

    def write_wrongly(architecture: Any, weights: Any, *arguments: Any, **options: Any) -> list[graph.Part]:
        wrong = {**weights, "head.bias": weights["head.bias"] + np.float32(0.01)}
        return write_graph(architecture, wrong, *arguments, **options)

    monkeypatch.setattr(graph, "write_graph", write_wrongly)
    with pytest.raises(ModelError, match="differs from torch by 0\\.0"):
        build_artifact(BUNDLED, small_weights, sha256_of(small_weights), tmp_path / "x.onnx", compare=True)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("family", Family)
def test_every_family_exports(family: Family, tmp_path: Path) -> None:
    """A narrow model of each family with one block per stage, compared with torch."""
    row = next(v for v in list_variants() if v.family is family and v.input_size[1] == 224)
    small = dataclasses.replace(row.architecture, depths=(1, 1, 1, 1), dims=(8, 16, 32, 32))
    row = dataclasses.replace(row, architecture=small)
    state = fill(build_model(small, num_classes=1000)).state_dict()
    torch.save(state, tmp_path / "x.pth")
    artifact = ensure_artifact(row, tmp_path / "x.pth", use_cache(tmp_path, compare=True))
    assert max(artifact.check.values()) <= 1e-4
    assert artifact.labels[0].wnid == "n01440764"
    logits = load_engine(EngineName.ONNXRUNTIME, artifact).logits(pixels(2, 224).numpy())
    assert logits.shape == (2, 1000)
    assert logits.std() > 0.1


@pytest.mark.parametrize("size", [32, 77, 130])
@pytest.mark.parametrize("family", [family for family in Family if family is not Family.RANDFORMER])
def test_other_input_sizes_equal_torch(family: Family, size: int, tmp_path: Path) -> None:
    row = next(v for v in list_variants() if v.family is family and v.input_size[1] == 224)
    small = dataclasses.replace(row.architecture, depths=(1, 1, 1, 1), dims=(8, 16, 32, 32))
    row = dataclasses.replace(row, architecture=small).with_input_size(size, size)
    write_random(tmp_path / "x.safetensors", row)
    artifact = ensure_artifact(row, tmp_path / "x.safetensors", use_cache(tmp_path, compare=True))
    assert max(artifact.check.values()) <= MAX_LOGIT_DIFFERENCE
    assert artifact.plan.crop_size == (size, size)


SHAPES = {(variant.architecture, variant.input_size): variant for variant in list_variants()}
"""A variant for each architecture and input size: the graph depends on nothing else but the number of classes."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", SHAPES.values(), ids=lambda variant: variant.name)
def test_every_variant_equals_torch(variant: Variant, tmp_path: Path) -> None:
    few = dataclasses.replace(variant, num_classes=5)
    weights, path = tmp_path / "x.safetensors", tmp_path / "x.onnx"
    write_random(weights, few)
    build_artifact(few, weights, sha256_of(weights), path, labels=make_numbered_labels(5), compare=True)
    assert max(open_artifact(path, few, None, weights).check.values()) <= MAX_LOGIT_DIFFERENCE
    for file in (weights, path):
        file.unlink()  # up to 400 MB each


def test_an_unusable_cache_folder(small_weights: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OutputError, match="cannot write to the cache") as caught:
        ensure_artifact(BUNDLED, small_weights, use_cache(blocker))
    assert "MF_CACHE_DIR=DIR" in (caught.value.hint or "")
    assert caught.value.exit_code == 8

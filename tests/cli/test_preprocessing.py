"""The options of mf predict that replace a model's preprocessing, and folders as --weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Ran
from mfcli.models.registry import find_variant

Mf = Callable[..., Ran]


def predict(mf: Mf, *arguments: str | Path) -> dict[str, Any]:
    ran = mf("predict", *arguments, "--format", "jsonl", "-q")
    assert ran.code == 0, ran.err
    row: dict[str, Any] = json.loads(ran.out)
    return row


def timm_probs(file: Path, size: int = 64, **config: Any) -> Any:
    """Return the bundled model's probabilities in torch, behind timm's transform."""
    import torch
    from timm.data import create_transform, resolve_data_config

    from mfcli.hub.bundled import bundled_file
    from mfcli.models.checkpoint import load_checkpoint

    config = {"crop_pct": 0.95, "input_size": (3, size, size), **config}
    transform = create_transform(**resolve_data_config(config), is_training=False)
    model = load_checkpoint(bundled_file("convformer_t8_64.safetensors"), find_variant("bundled")).model
    with torch.inference_mode():
        return model(transform(Image.open(file))[None]).softmax(-1)[0]


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        ((), {}),
        (("--mean", "0.5,0.5,0.5"), {"mean": (0.5, 0.5, 0.5)}),
        (("--std", "0.5, 0.4, 0.3"), {"std": (0.5, 0.4, 0.3)}),
        (("--crop-pct", "0.8"), {"crop_pct": 0.8}),
        (("--interpolation", "lanczos"), {"interpolation": "lanczos"}),
        (("--input-size", "64"), {}),
        (("--input-size", "96", "--weights"), {"size": 96}),
        (("--input-size", "75", "--crop-pct", "1", "--weights"), {"size": 75, "crop_pct": 1.0}),
    ],
)
def test_answers_are_those_of_timms_transform(
    mf: Mf, coffee: Path, arguments: tuple[str, ...], config: dict[str, Any]
) -> None:
    from mfcli.hub.bundled import bundled_file

    weights = [bundled_file("convformer_t8_64.safetensors")] if "--weights" in arguments else []
    row = predict(mf, coffee, *arguments, *weights)
    expected = timm_probs(coffee, **config)
    for prediction in row["predictions"]:
        assert prediction["prob"] == pytest.approx(float(expected[prediction["class_index"]]), abs=2e-3)
    default = predict(mf, coffee)
    assert (row["run"] == default["run"]) == (not config)


def test_preprocessing_needs_no_other_artifact(
    mf: Mf, coffee: Path, small_weights: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {predict(mf, coffee, "--weights", small_weights)["run"]}
    for arguments in (("--crop-pct", "0.5"), ("--mean", "0,0,0"), ("--std", "1,1,1"), ("--interpolation", "box")):
        runs.add(predict(mf, coffee, "--weights", small_weights, *arguments)["run"])
    assert len(list((own_cache / "artifacts").glob("*.onnx"))) == 1
    runs.add(predict(mf, coffee, "--weights", small_weights, "--input-size", "32")["run"])
    assert (len(runs), len(list((own_cache / "artifacts").glob("*.onnx")))) == (6, 2)
    verified = mf("cache", "verify", "--against-torch", "--format", "json")
    assert [row["status"] for row in json.loads(verified.out)] == ["good", "good"]
    told = json.loads(mf("info", "bundled", "--format", "json").out)
    assert (len(told["artifacts"]), len(told["other_artifacts"])) == (1, 2)
    monkeypatch.setattr("mfcli.tasks.cache._is_old", lambda _: True)
    assert json.loads(mf("cache", "prune", "--dry-run", "--format", "json").out) == []


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--mean", "0.5,0.5"), "--mean 0.5,0.5 is not three numbers from 0 to 1", "--mean 0.485,0.456,0.406"),
        (("--mean", "half"), "--mean 'half' is not a list of numbers", "--mean 0.5,0.5,0.5"),
        (("--std", "0.2,0.2,nan"), "--std 0.2,0.2,nan is not three numbers", "--std 0.229,0.224,0.225"),
        (("--crop-pct", "0"), "--crop-pct 0.0 is not a number from 0.1 to 1", "--crop-pct 0.95"),
        (("--interpolation", "cubic"), "'cubic' is not one of", "mf predict --help"),
        (("--input-size", "100000"), "--input-size 100000 is not a number of pixels", "--input-size 224"),
        (("--input-size", "96"), "the bundled model takes pictures of 64x64 only", "--input-size 64"),
        (("-m", "randformer_s12", "--input-size", "96"), "--input-size 96 does not fit", "--input-size 224"),
    ],
)
def test_values_that_are_not_valid(mf: Mf, coffee: Path, arguments: tuple[str, ...], message: str, hint: str) -> None:
    ran = mf("predict", coffee, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert hint in ran.err


def test_resuming_with_other_preprocessing_is_refused(mf: Mf, coffee: Path, tmp_path: Path) -> None:
    assert mf("predict", coffee, "-o", tmp_path / "x.jsonl", "-q").code == 0
    ran = mf("predict", coffee, "-o", tmp_path / "x.jsonl", "--resume", "--crop-pct", "1")
    assert (ran.code, "belongs to a different run: other preprocessing\n" in ran.err) == (8, True)


def test_a_folder_as_weights(mf: Mf, coffee: Path, small_weights: Path, tmp_path: Path) -> None:
    shutil.copy(small_weights, tmp_path / "pytorch_model.bin")
    config = {"architecture": "convformer_t8", "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.95}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    unnamed = mf("predict", coffee, "--weights", tmp_path)
    assert "has 7 classes without names" in unnamed.err
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": list("abcdefg")}))
    named = mf("predict", coffee, "--weights", tmp_path)
    assert (named.code, named.err) == (0, "")
    row, alone = predict(mf, coffee, "--weights", tmp_path), predict(mf, coffee, "--weights", small_weights)
    assert [p["label"] for p in row["predictions"]] == ["abcdefg"[p["class_index"]] for p in row["predictions"]]
    assert [p["prob"] for p in row["predictions"]] == [p["prob"] for p in alone["predictions"]]
    other = mf("predict", coffee, "--weights", tmp_path, "-m", "caformer_s18")
    assert other.code == 4
    assert "the model is convformer_t8, not caformer_s18\nhint: --model convformer_t8_64" in other.err

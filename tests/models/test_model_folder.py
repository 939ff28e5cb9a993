"""Folders of timm and Hugging Face: preprocessing and labels as those read them, or a clear refusal."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mfcli
from deterministic import fill, picture
from mfcli.errors import MfError, ModelError
from mfcli.inference.model_loading import load_predictor
from mfcli.models.model_folder import ModelFolder, compute_crop_pct, read_model_folder
from mfcli.models.preprocess import PreprocessPlan, make_preprocess_plan
from mfcli.models.registry import Interpolation, find_variant
from mfcli.results import Label
from mfcli.settings import Settings

HALF = (0.5, 0.5, 0.5)
PRETRAINED: dict[str, Any] = {
    "input_size": [3, 96, 96],
    "mean": list(HALF),
    "std": list(HALF),
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "crop_mode": "center",
}
TIMM = {"architecture": "convformer_t8", "num_classes": 7, "label_names": list("abcdefg"), "pretrained_cfg": PRETRAINED}
PROCESSOR: dict[str, Any] = {
    "do_center_crop": True,
    "crop_size": {"height": 93, "width": 93},
    "size": {"shortest_edge": 99},
    "image_mean": list(HALF),
    "image_std": list(HALF),
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
}
HUGGING_FACE = {"id2label": {str(index): name for index, name in enumerate("abcdefg")}}


def write_folder(path: Path, config: Any, processor: Any = None, weights: Path | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    (path / "pytorch_model.bin").write_bytes(weights.read_bytes() if weights else b"")
    return path


def read(folder: Path, named: str | None = None) -> ModelFolder:
    return read_model_folder(folder, find_variant(named) if named else None, Settings.from_environ())


@pytest.mark.parametrize(
    ("config", "processor", "plan"),
    [
        (TIMM, None, PreprocessPlan(106, (96, 96), "bilinear", HALF, HALF)),
        (TIMM, PROCESSOR, PreprocessPlan(106, (96, 96), "bilinear", HALF, HALF)),
        (HUGGING_FACE, PROCESSOR, PreprocessPlan(99, (93, 93), "bilinear", HALF, HALF)),
        (HUGGING_FACE, PROCESSOR | {"crop_pct": 0.9}, PreprocessPlan(110, (93, 93), "bilinear", HALF, HALF)),
        (HUGGING_FACE, PROCESSOR | {"size": 99, "crop_size": 64}, PreprocessPlan(99, (64, 64), "bilinear", HALF, HALF)),
        (HUGGING_FACE, None, make_preprocess_plan(find_variant("bundled"))),
    ],
)
def test_preprocessing(config: Any, processor: Any, plan: PreprocessPlan, tmp_path: Path) -> None:
    assert make_preprocess_plan(read(write_folder(tmp_path / "x", config, processor)).variant) == plan


@pytest.mark.parametrize("pretrained", [{"tag": "x"}, {"mean": HALF, "crop_pct": None}, PRETRAINED], ids=str)
@pytest.mark.parametrize("is_nested", [True, False])
def test_timms_defaults(pretrained: dict[str, Any], is_nested: bool, tmp_path: Path) -> None:
    from timm.data import resolve_data_config

    config = {"architecture": "caformer_s18"} | ({"pretrained_cfg": pretrained} if is_nested else pretrained)
    found = read(write_folder(tmp_path / "x", config)).variant
    resolved = resolve_data_config(pretrained_cfg=pretrained)
    assert resolved.pop("crop_mode") == "center"
    assert {name: getattr(found, name) for name in resolved} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in resolved.items()
    }


@pytest.mark.parametrize(
    ("config", "named", "row"),
    [
        ({"architecture": "caformer_s18"}, None, "caformer_s18"),
        ({"architecture": "caformer_s18", "pretrained_cfg": {"tag": "sail_in22k"}}, None, "caformer_s18_in21k"),
        ({"architecture": "caformer_s18", "pretrained_cfg": {"tag": "mine"}}, None, "caformer_s18"),
        ({"architecture": "caformer_s18"}, "caformer_s18_384", "caformer_s18_384"),
        (HUGGING_FACE, None, "convformer_t8_64"),
        (HUGGING_FACE, "caformer_b36", "caformer_b36"),
    ],
)
def test_which_model_it_is(config: Any, named: str | None, row: str, tmp_path: Path) -> None:
    assert read(write_folder(tmp_path / "x", config), named).variant.name == row


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        (TIMM, [(None, name) for name in "abcdefg"]),
        (HUGGING_FACE, [(None, name) for name in "abcdefg"]),
        ({"pretrained_cfg": {"label_names": ["b", "a"]}}, [(None, "b"), (None, "a")]),
        ({"label_names": ["n02123045"], "label_descriptions": {"n02123045": "cat"}}, [("n02123045", "cat")]),
        ({"label_names": {"1": "b", "0": "n02123045"}}, [("n02123045", "n02123045"), (None, "b")]),
        ({"num_classes": 7}, None),
    ],
)
def test_labels(config: Any, labels: list[tuple[str | None, str]] | None, tmp_path: Path) -> None:
    expected = None if labels is None else tuple(Label(*label) for label in labels)
    assert read(write_folder(tmp_path / "x", config)).labels == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ({"pretrained_cfg": 3}, "pretrained_cfg is not an object"),
        ({"architecture": "resnet50"}, "unknown architecture 'resnet50'"),
        ({"architecture": ["resnet50"]}, "unknown architecture"),
        (TIMM | {"global_pool": "max"}, "created with global_pool, which is not supported"),
        (TIMM | {"model_args": {"act_layer": "relu"}}, "created with act_layer, which is not supported"),
        (TIMM | {"model_args": []}, None),
        (TIMM | {"model_args": [1]}, "model_args is not an object"),
        ({"label_names": "cat"}, "is JSON without class names"),
        ({"id2label": {"0": "a", "2": "b"}}, "not 0 to 1, 1 is missing"),
        ({"crop_mode": "squash"}, "crop_mode 'squash' is not supported, only 'center'"),
        ({"input_size": [3, 224, 192]}, r"input_size \[3, 224, 192\] is not supported"),
        ({"input_size": [1, 96, 96]}, r"input_size \[1, 96, 96\] is not supported"),
        ({"input_size": 96}, "input_size 96 is not supported"),
        ({"input_size": [3, "a", "a"]}, "config.json: input_size a is not a number of pixels"),
        ({"mean": [0.5, 0.5]}, "config.json: mean 0.5,0.5 is not three numbers"),
        ({"std": [0.5, 0.5, -1]}, "std 0.5,0.5,-1 is not three numbers"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 is not a number"),
        ({"interpolation": "random"}, "unknown interpolation 'random'"),
    ],
)
def test_configurations_that_are_refused(config: Any, message: str | None, tmp_path: Path) -> None:
    if isinstance(config, dict) and config.keys() <= PRETRAINED.keys():
        config = TIMM | {"pretrained_cfg": PRETRAINED | config}
    folder = write_folder(tmp_path / "x", config)
    if message is None:
        assert read(folder)
        return
    with pytest.raises(ModelError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ([], "not a JSON object"),
        ({"do_center_crop": False}, "without do_center_crop is not supported"),
        ({"do_normalize": False}, "without do_normalize is not supported"),
        ({"size": {"height": 224, "width": 224}}, "size .* is not supported, only shortest_edge"),
        ({"crop_size": {"height": 64, "width": 96}}, "crop_size .* is not supported, only a square"),
        ({"crop_size": 100}, "a crop of 100 pixels from 99"),
        ({"crop_size": 20}, "input_size 20 is not a number of pixels"),
        ({"size": 0, "crop_size": 0}, "a crop of 0 pixels from 0"),
        ({"rescale_factor": 1}, "rescale_factor 1 is not supported, only 1/255"),
        ({"resample": 6}, "unknown interpolation 6"),
        ({"image_mean": [127, 127, 127]}, "preprocessor_config.json: mean 127,127,127 is not"),
    ],
)
def test_processors_that_are_refused(processor: Any, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", {}, PROCESSOR | processor if isinstance(processor, dict) else processor)
    with pytest.raises(ModelError, match=message):
        read(folder)


def test_preprocessing_that_is_not_supported_can_be_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", {}, PROCESSOR | {"do_center_crop": False})
    with pytest.raises(
        ModelError, match=f"hint: to use the weights alone: weights={folder}/pytorch_model.bin, and name"
    ):
        read(folder)


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 10**400, math.nan, math.inf, "", "x", "=", [], [[]], [3, 0, 0], [3] * 3, {}, {"a": []}]
)
def test_no_value_is_a_bug(value: Any, tmp_path: Path) -> None:
    keys = {**TIMM, "model_args": {}, "global_pool": "avg", "label_descriptions": {}, "id2label": {}}
    configs: list[tuple[Any, Any]] = [(TIMM | {key: value}, None) for key in keys]
    configs += [(TIMM | {"pretrained_cfg": PRETRAINED | {key: value}}, None) for key in (*PRETRAINED, *TIMM, "tag")]
    configs += [({}, PROCESSOR | {key: value}) for key in (*PROCESSOR, "crop_pct", "do_resize")]
    refused = 0
    for config, processor in [*configs, (value, None), ({}, value)]:
        try:
            read(write_folder(tmp_path / "x", json.dumps(config), {} if processor is None else processor))
        except ModelError:
            refused += 1
    assert refused


def test_pillows_filters_have_their_numbers(tmp_path: Path) -> None:
    for name in Interpolation:
        folder = write_folder(tmp_path / "x", {}, PROCESSOR | {"resample": int(Image.Resampling[name.upper()])})
        assert read(folder).variant.interpolation is name


def test_every_crop_of_a_processor_has_a_crop_pct() -> None:
    for crop in range(32, 1025, 7):
        assert all(math.floor(crop / compute_crop_pct(crop, size)) == size for size in range(crop, 4 * crop))


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ([], "has neither model.safetensors nor pytorch_model.bin", "weights=FILE"),
        (["args.json", "head.safetensors"], "has neither model.safetensors nor", "model="),
        (["config.json"], "has neither model.safetensors nor pytorch_model.bin", "weights=FILE"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "several files of weights",
            "one file",
        ),
        (["model.safetensors"], "has no config.json", "to use the weights alone: weights="),
    ],
)
def test_folders_that_lack_a_file(files: list[str], message: str, hint: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path)
    assert hint in (caught.value.hint or "")


def test_another_model_than_the_named_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the model is convformer_t8, not caformer_s18") as caught:
        read(write_folder(tmp_path / "x", TIMM), "caformer_s18")
    assert caught.value.hint == "model=convformer_t8_64"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 8}, "config.json: 8 num_classes, but the head in pytorch_model.bin has 7"),
        ({"label_names": ["a"]}, "config.json: 1 class names, but the head in pytorch_model.bin has 7"),
        ({"architecture": "caformer_s18", "label_names": None}, "does not fit caformer_s18"),
    ],
)
def test_a_configuration_that_contradicts_its_weights(
    change: dict[str, Any], message: str, tmp_path: Path, small_weights: Path
) -> None:
    folder = write_folder(tmp_path / "x", TIMM | change, weights=small_weights)
    with pytest.raises(ModelError, match=message):
        load_predictor(weights=folder)


def test_options_take_precedence(tmp_path: Path, small_weights: Path) -> None:
    folder = write_folder(tmp_path / "x", TIMM, weights=small_weights)
    given = mfcli.load_predictor(weights=folder)
    assert given.artifact.plan == PreprocessPlan(106, (96, 96), "bilinear", HALF, HALF)
    assert [label.name for label in given.labels] == list("abcdefg")
    names = tuple(Label(None, name) for name in "ABCDEFG")
    other = mfcli.load_predictor(weights=folder, crop_pct=1, std=(0.25, 0.25, 0.25), labels=names)
    assert other.artifact.plan == PreprocessPlan(96, (96, 96), "bilinear", HALF, (0.25, 0.25, 0.25))
    assert (other.labels, other.artifact.path) == (names, given.artifact.path)
    with pytest.raises(MfError, match="input_size=10 is not"):
        mfcli.load_predictor(weights=folder, input_size=10)


@pytest.mark.slow
def test_a_folder_that_timm_wrote_is_answered_as_by_timm(tmp_path: Path) -> None:
    import timm
    from timm.models._hub import save_for_hf

    model = timm.create_model("poolformerv2_s12", num_classes=5).eval()
    fill(model)
    data = {"mean": HALF, "std": HALF, "crop_pct": 0.8, "interpolation": "bilinear", "input_size": (3, 160, 160)}
    names = ["n02123045", "dog", "cow", "fox", "owl"]
    model.pretrained_cfg.update(data)
    save_for_hf(model, tmp_path, model_config={"label_names": names}, safe_serialization=True)
    rgb = picture(300, 200)
    rgb.save(tmp_path / "x.png")
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=reference), is_training=False)
    with torch.inference_mode():
        expected = reference(transform(rgb)[None]).softmax(-1)[0].numpy()
    predictor = mfcli.load_predictor(weights=tmp_path)
    found = predictor.predict(tmp_path / "x.png").predictions
    assert predictor.artifact.variant == "poolformerv2_s12"
    assert [p.label for p in found] == [names[p.class_index] for p in found]
    assert [p.prob for p in found] == pytest.approx([float(expected[p.class_index]) for p in found], abs=1e-5)

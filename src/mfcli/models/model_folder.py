"""A folder that timm or Hugging Face wrote: weights beside a config.json, which names the architecture and the classes.

timm's config.json also contains the preprocessing; Hugging Face's is in preprocessor_config.json. timm's defaults apply
to what its config.json does not say, and what a preprocessing plan cannot express is refused.
"""

import contextlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mfcli.errors import ModelError, UsageError
from mfcli.files import is_file, list_files
from mfcli.models.label_files import read_labels
from mfcli.models.own import ARGS_FILE
from mfcli.models.preprocess import PreprocessOverrides
from mfcli.models.registry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Variant,
    default_variant,
    find_variant,
    list_variants,
)
from mfcli.results import Label
from mfcli.settings import Settings

_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_NEUTRAL_ARGS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "proj_drop_rate"}
"""Arguments of timm's models that show in the shapes of the weights, or do not matter outside training."""
_MAX_SIZE = 10_000
"""Pixels of the shorter side, beyond any model's."""
_FILTERS = {str(int(Image.Resampling[name.upper()])): name for name in Interpolation}
"""Filters by Pillow's numbers, which Hugging Face writes."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder says of its model.

    Attributes:
        config_file: its config.json.
        weights_file: its checkpoint.
        variant: the model, with the folder's preprocessing.
        labels: the class names in head order, None where it has none.
        num_classes: outputs of the head, None where it does not say.
    """

    config_file: Path
    weights_file: Path
    variant: Variant
    labels: tuple[Label, ...] | None
    num_classes: int | None

    def check_classes(self, num_classes: int) -> None:
        """Check what the folder says of its classes.

        Args:
            num_classes: outputs of the head in its weights.

        Raises:
            ModelError: it says another number.
        """
        names = None if self.labels is None else len(self.labels)
        for told, what in ((self.num_classes, "num_classes"), (names, "class names")):
            if told not in (None, num_classes):
                raise ModelError(
                    f"{self.config_file}: {told} {what}, but the head in {self.weights_file.name} has {num_classes}",
                    _use_alone(self.weights_file),
                )


def read_model_folder(folder: Path, named: Variant | None, settings: Settings) -> ModelFolder:
    """Read the files beside a folder's weights.

    Args:
        folder: contains config.json, and model.safetensors or pytorch_model.bin.
        named: the model that the user named, which must have the folder's architecture; None for the folder's.
        settings: name the model of a folder that names no architecture.

    Raises:
        ModelError: a file is missing or malformed, is another model's, or asks for what is not supported.
    """
    weights_file = _find_weights(folder)
    file = folder / "config.json"
    if not is_file(file):
        raise ModelError(f"{folder} has no config.json", _use_alone(weights_file))
    config = _read_json(file)
    pretrained = config.get("pretrained_cfg", config)  # older versions of timm wrote a single level
    if not isinstance(pretrained, dict):
        raise _make_error(file, "pretrained_cfg is not an object")
    row = _find_row(file, config, pretrained)
    if named and row and named.architecture != row.architecture:
        raise ModelError(f"{file}: the model is {row.architecture.name}, not {named.name}", f"model={row.name}")
    overrides = _read_preprocessing(file, config, pretrained)
    is_labelled = any(part.get(key) for part in (config, pretrained) for key in ("label_names", "id2label"))
    try:
        variant = overrides.apply(named or row or default_variant(settings))
        labels = read_labels(file) if is_labelled else None
    except UsageError as error:
        raise ModelError(_name_field(error.message), error.hint) from error
    return ModelFolder(file, weights_file, variant, labels, config.get("num_classes", pretrained.get("num_classes")))


def _find_weights(folder: Path) -> Path:
    for name in _WEIGHTS_FILES:
        if is_file(folder / name):
            return folder / name
    others = [path.name for pattern in ("*.safetensors", "*.bin", "*.pth") for path in list_files(folder, pattern)]
    if len(others) > 1:
        raise ModelError(
            f"{folder} has several files of weights, {others[0]} first, and no {_WEIGHTS_FILES[0]}",
            f"save all weights in one file, {_WEIGHTS_FILES[0]}; or name a file: weights=FILE",
        )
    hint = f"model={folder}" if is_file(folder / ARGS_FILE) else "name a file of weights: weights=FILE"
    raise ModelError(f"{folder} has neither {' nor '.join(_WEIGHTS_FILES)}", hint)


def _use_alone(weights_file: Path) -> str:
    return f"to use the weights alone: weights={weights_file}"


def _make_error(file: Path, problem: str) -> ModelError:
    return ModelError(f"{file}: {problem}", f"correct {file}")


def _unsupported(file: Path, what: str) -> ModelError:
    hint = f"{_use_alone(_find_weights(file.parent))}, and name preprocessing and labels as options"
    return ModelError(f"{file}: {what}", hint)


def _name_field(message: str) -> str:
    """Return a message about a parameter as one about a field of a file."""
    return re.sub(r"^(\w+)=", r"\1 ", message)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _make_error(file, "not JSON") from error
    if not isinstance(value, dict):
        raise _make_error(file, "not a JSON object")
    return value


def _find_row(file: Path, config: dict[str, Any], pretrained: dict[str, Any]) -> Variant | None:
    """Return the row of timm's tag, from which training began, or the first of the architecture, if one is named."""
    architecture = config.get("architecture") or pretrained.get("architecture")
    if architecture is None:
        return None
    for name in (f"{architecture}.{pretrained.get('tag')}", f"{architecture}"):
        with contextlib.suppress(ModelError):
            return find_variant(name)
    for variant in list_variants():
        if variant.architecture.name == architecture:
            return variant
    raise ModelError(f"{file}: unknown architecture {architecture!r}", "all models: mf list-models")


def _read_preprocessing(file: Path, config: dict[str, Any], pretrained: dict[str, Any]) -> PreprocessOverrides:
    if "architecture" in config or "pretrained_cfg" in config:
        _check_arguments(file, config)
        return _read_timm_preprocessing(file, pretrained)
    processor_file = file.with_name("preprocessor_config.json")
    return _read_processor(processor_file) if is_file(processor_file) else PreprocessOverrides()


def _check_arguments(file: Path, config: dict[str, Any]) -> None:
    """Refuse arguments that change a model's answers but not the shapes of its weights."""
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise _make_error(file, "model_args is not an object")
    other = sorted(given.keys() - _NEUTRAL_ARGS - {"global_pool"})
    if any(part.get("global_pool") not in (None, "avg") for part in (config, given)):
        other.append("global_pool")
    if other:
        raise ModelError(f"{file}: the model was created with {', '.join(other)}, which is not supported")


def _read_timm_preprocessing(file: Path, pretrained: dict[str, Any]) -> PreprocessOverrides:
    """Read what timm's `resolve_data_config` reads, with its defaults."""
    if (crop_mode := pretrained.get("crop_mode") or "center") != "center":
        raise _unsupported(file, f"crop_mode {crop_mode!r} is not supported, only 'center'")
    match pretrained.get("input_size") or (3, 224, 224):
        case [3, height, width] if height == width:
            pass
        case other:
            raise _unsupported(file, f"input_size {other} is not supported, only [3, N, N]")
    return _parse_overrides(
        file,
        mean=pretrained.get("mean") or IMAGENET_MEAN,
        std=pretrained.get("std") or IMAGENET_STD,
        crop_pct=pretrained.get("crop_pct") or 0.875,
        interpolation=pretrained.get("interpolation") or Interpolation.BICUBIC,
        input_size=height,
    )


def _read_processor(file: Path) -> PreprocessOverrides:
    """Read Hugging Face's preprocessing: the shorter side is resized to size / crop_pct, the centre is cropped."""
    config = _read_json(file)
    for step, default in (("do_resize", True), ("do_center_crop", False), ("do_rescale", True), ("do_normalize", True)):
        if config.get(step, default) is not True:
            raise _unsupported(file, f"preprocessing without {step} is not supported")
    factor = config.get("rescale_factor", 1 / 255)
    if not (isinstance(factor, float) and math.isclose(factor, 1 / 255)):
        raise _unsupported(file, f"rescale_factor {factor} is not supported, only 1/255")
    size, crop = _read_sizes(file, config)
    if not 0 < crop <= size <= _MAX_SIZE:
        raise _make_error(file, f"a crop of {crop} pixels from {size}")
    crop_pct = _parse_overrides(file, crop_pct=config.get("crop_pct")).crop_pct or 1
    resample = config.get("resample")
    return _parse_overrides(
        file,
        mean=config.get("image_mean"),
        std=config.get("image_std"),
        crop_pct=compute_crop_pct(crop, math.floor(size / crop_pct)),
        interpolation=_FILTERS.get(str(resample), resample),
        input_size=crop,
    )


def _read_sizes(file: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Return the pixels of the shorter side before `crop_pct`, and of the crop."""
    match config.get("size"):
        case {"shortest_edge": int(size)} | int(size):
            pass
        case other:
            raise _unsupported(file, f"size {other} is not supported, only shortest_edge")
    match config.get("crop_size", size):
        case {"height": int(crop), "width": int(width)} if crop == width:
            return size, crop
        case int(crop):
            return size, crop
        case other:
            raise _unsupported(file, f"crop_size {other} is not supported, only a square")


def compute_crop_pct(crop: int, resized: int) -> float:
    """Return the crop_pct by which a crop of so many pixels has a resized shorter side of so many."""
    crop_pct = crop / resized
    return crop_pct if math.floor(crop / crop_pct) == resized else math.nextafter(crop_pct, 0)


def _parse_overrides(file: Path, **values: Any) -> PreprocessOverrides:
    try:
        return PreprocessOverrides.parse(**values)
    except UsageError as error:
        raise _make_error(file, _name_field(error.message)) from error

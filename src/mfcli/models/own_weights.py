"""All weights of a model of the user's own, for torch: those of its backbone with the head that was trained."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfcli.errors import ModelError
from mfcli.files import known_sha256
from mfcli.models.checkpoint import Weights, read_checkpoint, require_packages
from mfcli.models.own import CHECKPOINT_FILE, HEAD_FILE, read_own_variant
from mfcli.models.registry import VARIANTS, Variant


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A model of `mf train`.

    Attributes:
        variant: its row.
        weights: one float32 array per parameter.
        familiarity: axes, offset and centres, see `models.abstention.Familiarity`.
    """

    variant: Variant
    weights: Weights
    familiarity: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def read_own_model(folder: Path, checkpoint: Path) -> OwnModel:
    """Read the weights of a folder that `mf train` wrote.

    Args:
        folder: has the head.
        checkpoint: of the backbone: that of the base model, or `model.safetensors` in the folder.

    Raises:
        EngineError: safetensors cannot be loaded.
        ModelError: a file is damaged, or the checkpoint is not the one that the head was trained with.
    """
    require_packages("safetensors")
    from safetensors import SafetensorError, safe_open

    again = f"train it again into {folder}, with overwrite=True"
    try:
        with safe_open(folder / HEAD_FILE, "numpy") as file:
            origin = json.loads(file.metadata()["mfcli"])
            head = {name: file.get_tensor(name) for name in ("head.weight", "head.bias")}
            axes, offset, centres = (file.get_tensor(f"familiarity.{name}") for name in ("axes", "offset", "centres"))
            base, sha256 = VARIANTS[origin["base"]], str(origin["backbone_sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / HEAD_FILE} is damaged, or of another version", again) from error
    if known_sha256(checkpoint) != sha256:
        raise ModelError(f"{checkpoint} is not the checkpoint that {folder} was trained with", "engine=onnxruntime")
    variant = read_own_variant(folder)
    weights = read_checkpoint(checkpoint, variant if checkpoint == folder / CHECKPOINT_FILE else base).weights
    backbone = {name: array for name, array in weights.items() if not name.startswith("head.")}
    return OwnModel(variant, backbone | head, (axes, offset, centres))

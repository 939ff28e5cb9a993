"""Writing a model of the user's own: the head, the artifact, and what it was trained with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfcli.artifact.file import update_sidecar
from mfcli.errors import ModelError
from mfcli.inference.model_loading import load_predictor
from mfcli.inference.predictor import Predictor
from mfcli.models.labels import make_class_labels
from mfcli.models.own import ARGS_FILE, CHECKPOINT_FILE, HEAD_FILE, MODEL_FILE
from mfcli.training.candidates import Candidate
from mfcli.training.request import TrainRequest
from mfcli.version import __version__

if TYPE_CHECKING:
    from mfcli.models.checkpoint import Weights

_MAX_DIFFERENCE = 1e-3
"""Between the logits of the written model and of its head, over the largest one."""


def write_model(folder: Path, request: TrainRequest, candidate: Candidate, classes: tuple[str, ...]) -> Predictor:
    """Write the head, the artifact and the arguments, and return the model as it will be loaded.

    Raises:
        ModelError: the model computes something else than its head.
        OSError: they cannot be written.
    """
    from mfcli.artifact.own import replace_head

    artifact, head, limits = candidate.backbone.artifact, candidate.fitted.head, candidate.limits
    backbone_sha256, checkpoint = artifact.weights_sha256, artifact.checkpoint
    if candidate.weights is not None:
        backbone_sha256, checkpoint = _write_checkpoint(folder / CHECKPOINT_FILE, candidate, candidate.weights), None
    origin = {"base": candidate.base, "backbone_sha256": backbone_sha256, "classes": classes}
    digest = _write_head(folder / HEAD_FILE, candidate, origin)
    name, labels = request.output.name, make_class_labels(classes)
    extra = {"base": origin, "temperature": candidate.fitted.temperature, "thresholds": limits.thresholds.to_json()}
    model = replace_head(artifact, name, head.weight, head.bias, labels, digest, limits.familiarity, extra)
    path = folder / MODEL_FILE
    path.write_bytes(model)
    sha256, mtime_ns = hashlib.sha256(model).hexdigest(), path.stat().st_mtime_ns
    update_sidecar(path, sha256=sha256, size_bytes=len(model), mtime_ns=mtime_ns)
    arguments = {"name": name, "base": candidate.base, "num_classes": len(classes)} | request.list_arguments()
    arguments |= {"checkpoint": checkpoint and str(checkpoint.absolute()), "mfcli": __version__}
    (folder / ARGS_FILE).write_text(json.dumps(arguments, indent=1))
    own = load_predictor(str(folder))
    _check_model(own, candidate)
    return own


def _write_head(path: Path, candidate: Candidate, origin: Mapping[str, object]) -> str:
    """Write the head, and what the distance is computed by; return the digest of the file."""
    from safetensors.numpy import save

    head, familiarity = candidate.fitted.head, candidate.limits.familiarity
    tensors = {
        "head.weight": head.weight,
        "head.bias": head.bias,
        "familiarity.axes": familiarity.axes,
        "familiarity.offset": familiarity.offset,
        "familiarity.centres": familiarity.centres,
    }
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, {"mfcli": json.dumps(origin)})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _write_checkpoint(path: Path, candidate: Candidate, weights: "Weights") -> str:
    """Write the weights of a fine-tuned model; return the digest of the file."""
    from safetensors.numpy import save

    head = candidate.fitted.head
    data = save(weights | {"head.weight": head.weight, "head.bias": head.bias})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _check_model(own: Predictor, candidate: Candidate) -> None:
    """Check that the written model computes what the head does.

    Raises:
        ModelError: it does not.
    """
    size = own.artifact.plan.crop_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    _, features = candidate.backbone.engine.compute(pixels)
    expected = candidate.fitted.head.logits(features)
    difference = float(np.abs(own.engine.logits(pixels) - expected).max())
    if not difference <= _MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(f"the written model differs from its head by {difference:.2g}", "please report this")

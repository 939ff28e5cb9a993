"""Writing a model of the user's own: the head, the artifact, and what it was trained with."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfcli.artifact.file import update_sidecar
from mfcli.errors import ModelError
from mfcli.inference.predictor import Predictor, load_predictor
from mfcli.models.abstention import Familiarity, Thresholds, fit_familiarity, list_error_bounds
from mfcli.models.head import FittedHead, TrainingSet
from mfcli.models.labels import make_class_labels
from mfcli.models.metrics import judge
from mfcli.models.own import ARGS_FILE, MODEL_FILE
from mfcli.training.request import TrainRequest
from mfcli.version import __version__

_HEAD_FILE = "head.safetensors"
_MAX_DIFFERENCE = 1e-3
"""Between the logits of the written model and of its head, over the largest one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the new model does not know: how far pictures are from its classes, and its thresholds."""

    familiarity: Familiarity
    thresholds: Thresholds


def fit_limits(training: TrainingSet, fitted: FittedHead) -> Limits:
    """Return the limits of a model, from its answers for pictures in the folds in which they were judged."""
    familiarity, max_distance = fit_familiarity(training)
    answers = judge(fitted.out_of_fold[training.seen], training.targets[training.seen])
    return Limits(familiarity, Thresholds(list_error_bounds(answers.confidence, answers.are_right), max_distance))


def write_model(
    folder: Path,
    request: TrainRequest,
    base: Predictor,
    fitted: FittedHead,
    limits: Limits,
    classes: tuple[str, ...],
) -> Predictor:
    """Write the head, the artifact and the arguments, and return the model as it will be loaded."""
    from safetensors.numpy import save

    from mfcli.artifact.own import replace_head

    head = fitted.head
    origin = {"base": base.artifact.variant, "base_weights_sha256": base.artifact.weights_sha256, "classes": classes}
    data = save({"head.weight": head.weight, "head.bias": head.bias}, {"mfcli": json.dumps(origin)})
    (folder / _HEAD_FILE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    name, labels = request.output.name, make_class_labels(classes)
    extra = {"base": origin, "temperature": fitted.temperature, "thresholds": limits.thresholds.to_json()}
    model = replace_head(base.artifact, name, head.weight, head.bias, labels, digest, limits.familiarity, extra)
    path = folder / MODEL_FILE
    path.write_bytes(model)
    sha256, mtime_ns = hashlib.sha256(model).hexdigest(), path.stat().st_mtime_ns
    update_sidecar(path, sha256=sha256, size_bytes=len(model), mtime_ns=mtime_ns)
    arguments = {"name": name, "base": base.artifact.variant, "num_classes": len(classes)} | request.list_arguments()
    (folder / ARGS_FILE).write_text(json.dumps(arguments | {"mfcli": __version__}, indent=1))
    own = load_predictor(str(folder))
    _check_model(base, own, fitted)
    return own


def _check_model(base: Predictor, own: Predictor, fitted: FittedHead) -> None:
    """Check that the written model computes what the head does.

    Raises:
        ModelError: it does not.
    """
    size = own.artifact.plan.crop_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    _, features = base.engine.compute(pixels)
    expected = fitted.head.logits(features)
    difference = float(np.abs(own.engine.logits(pixels) - expected).max())
    if not difference <= _MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
        raise ModelError(f"the written model differs from its head by {difference:.2g}", "please report this")

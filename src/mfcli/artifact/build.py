"""Building an artifact from a checkpoint, without torch: read the weights, write the graph, try it, write the file.

A checkpoint is accepted by its table of parameters and by finite logits. Where torch is installed, the logits can also
be compared with those of the backbone in torch, and the artifact then says how far they are apart.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfcli.artifact.file import (
    FORMAT_VERSION,
    METADATA_PREFIX,
    Artifact,
    artifact_key,
    open_artifact,
    read_origins,
    runtime_source,
    update_sidecar,
)
from mfcli.errors import ModelError
from mfcli.files import cache_write_error, open_atomically
from mfcli.hub.bundled import bundled_file
from mfcli.models.preprocess import PreprocessPlan, make_preprocess_plan
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label
from mfcli.version import __version__

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAX_LOGIT_DIFFERENCE = 1e-4
"""The largest accepted difference from torch, in units of the logits' standard deviation."""
_COMPARISON_PACKAGES = ("torch", "timm")


def build_artifact(
    variant: Variant,
    weights_file: Path,
    weights_sha256: str,
    path: Path,
    *,
    origin: str | None = None,
    others: Sequence[Artifact] = (),
    labels: tuple[Label, ...] | None = None,
    half_weights: bool = False,
    compare: bool = False,
) -> None:
    """Build the artifact of a checkpoint, and its sidecar, at `path`, unless another one has the same weights.

    Args:
        variant: the model.
        weights_file: the checkpoint.
        weights_sha256: its digest.
        path: the ONNX file to write.
        origin: the file or the address that the weights came from, for the sidecar.
        others: artifacts; one that would be the same is used for this checkpoint as well.
        labels: the classes; None for the variant's, or for numbered ones if the head has another size.
        half_weights: store the weights rounded to float16; they are computed with as float32.
        compare: whether to compare the logits with torch's as well; imports torch and timm.

    Raises:
        EngineError: a package that is needed cannot be loaded.
        ModelError: the checkpoint is not this variant's, has another digest, or the logits are not finite, or differ
            from torch's.
        OutputError: `path` cannot be written.
    """
    from mfcli.models.checkpoint import read_checkpoint, require_packages

    require_packages("onnx", "onnxruntime")
    if compare:
        require_comparison()
    from mfcli.artifact.graph import write_graph

    checkpoint = read_checkpoint(weights_file, variant, weights_sha256)
    weights = checkpoint.weights
    if half_weights:
        weights = {name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()}
    graph = write_graph(variant.architecture, weights, variant.input_size, half_weights=half_weights)
    digest = hashlib.sha256()
    for part in graph:
        digest.update(part)
    graph_sha256 = digest.hexdigest()
    key, plan = artifact_key(variant, weights_sha256, half_weights), make_preprocess_plan(variant)
    labels = labels or _choose_labels(variant, checkpoint.num_classes)
    origins = {key: {"origin": origin, "date": datetime.now(UTC).isoformat(timespec="seconds")}} if origin else {}
    try:
        path.with_suffix(".json").unlink(missing_ok=True)  # the old digest must never lie beside the new file
        candidates = [other for other in others if other.path != path and (other.check or not compare)]
        for other in candidates:
            if (other.graph_sha256, other.plan, other.labels) == (graph_sha256, plan, labels):
                path.unlink(missing_ok=True)
                update_sidecar(other.path, origins=read_origins(other.path) | origins)
                return
        with open_atomically(path) as file:
            file.writelines(graph)
            file.flush()
            check = _check_graph(Path(file.name), variant, weights if compare else None)
            metadata = _serialize_metadata(variant, key, weights_sha256, labels, plan, check)
            file.write(metadata)
        digest.update(metadata)
        sidecar: dict[str, Any] = {"sha256": digest.hexdigest(), "size_bytes": path.stat().st_size}
        if origin:
            sidecar |= {"mtime_ns": path.stat().st_mtime_ns, "graph_sha256": graph_sha256, "origins": origins}
        update_sidecar(path, **sidecar)
    except OSError as error:
        raise cache_write_error(path.parent, error) from error


def _check_graph(path: Path, variant: Variant, weights: Mapping[str, NDArray[np.float32]] | None) -> dict[str, float]:
    """Return how far a graph's logits, which must be finite, are from torch's with these weights, if there are any."""
    session = _open_session(path)
    _check_finite(session, variant)
    return {} if weights is None else compare_with_torch(session, weights, variant)


def _serialize_metadata(
    variant: Variant,
    key: str,
    weights_sha256: str,
    labels: tuple[Label, ...],
    plan: PreprocessPlan,
    check: Mapping[str, float],
) -> bytes:
    from onnx import ModelProto

    fields = {
        "format_version": FORMAT_VERSION,
        "variant": variant.name,
        "key": key,
        "weights_sha256": weights_sha256,
        "source_url": variant.url,
        "labels": [(label.wnid, label.name) for label in labels],
        "versions": _read_versions(is_compared=bool(check)),
        "check": check,
        "preprocess": asdict(plan),
    }
    proto = ModelProto()
    for name, value in fields.items():
        proto.metadata_props.add(key=METADATA_PREFIX + name, value=json.dumps(value, sort_keys=True))
    return bytes(proto.SerializeToString())


def _choose_labels(variant: Variant, num_classes: int) -> tuple[Label, ...]:
    from mfcli.models.labels import load_imagenet_labels, make_numbered_labels

    if num_classes != variant.num_classes:
        return make_numbered_labels(num_classes)
    if variant.pretraining is Pretraining.BUNDLED:
        return open_artifact(bundled_file(f"{variant.name}.onnx"), variant, None, None).labels
    return load_imagenet_labels(num_classes)


def _read_versions(*, is_compared: bool) -> dict[str, str]:
    from importlib.metadata import version

    names = ("numpy", "onnx", "onnxruntime", *(_COMPARISON_PACKAGES if is_compared else ()))
    return {"mfcli": __version__} | {name: version(name) for name in names}


def _open_session(path: Path) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # it costs more than it saves on one picture
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(runtime_source(path), options, providers=["CPUExecutionProvider"])


def _check_finite(session: "InferenceSession", variant: Variant) -> None:
    pixels = np.random.default_rng(0).standard_normal((1, *variant.input_size), np.float32)
    (logits,) = session.run(["logits"], {"input": pixels})
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{variant.name} produces NaN or infinite logits with these weights",
            "the file may be damaged, or its training may have diverged",
        )


def require_comparison() -> None:
    """Fail early where artifacts cannot be compared with torch.

    Raises:
        EngineError: torch or timm is not installed.
    """
    from mfcli.models.checkpoint import require_packages

    require_packages(*_COMPARISON_PACKAGES)


def compare_artifact(artifact: Artifact, checkpoint: Path, variant: Variant) -> dict[str, float]:
    """Compare an artifact with its checkpoint in torch, as `compare_with_torch` does.

    Args:
        artifact: built from the checkpoint.
        checkpoint: the file.
        variant: the model.

    Raises:
        EngineError: torch or timm cannot be loaded.
        ModelError: the difference is larger than MAX_LOGIT_DIFFERENCE, or the checkpoint cannot be read.
    """
    from mfcli.models.checkpoint import read_checkpoint

    variant = variant.with_input_size(*artifact.plan.crop_size)
    weights = read_checkpoint(checkpoint, variant, artifact.weights_sha256).weights
    return compare_with_torch(_open_session(artifact.path), weights, variant)


def compare_with_torch(
    session: "InferenceSession", weights: Mapping[str, NDArray[np.float32]], variant: Variant
) -> dict[str, float]:
    """Return the largest difference from torch's logits at batch sizes 1 and 3, over their standard deviation.

    Args:
        session: holds the artifact's graph.
        weights: float32 arrays by parameter.
        variant: the model.

    Raises:
        EngineError: torch or timm cannot be loaded.
        ModelError: the difference is larger than MAX_LOGIT_DIFFERENCE.
    """
    from mfcli.models.checkpoint import load_model

    model: Any = load_model(weights, variant)
    import torch

    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch in (1, 3):
        pixels = torch.randn(batch, *variant.input_size, generator=generator)
        with torch.inference_mode():
            expected = model(pixels).numpy()
        (logits,) = session.run(["logits"], {"input": pixels.numpy()})
        share = 0.01 if model.num_classes > 1 else 1.0  # the standard deviation of a single logit is 0
        scale = max(float(expected.std()), share * float(np.abs(expected).mean()), 1e-6)
        difference = float(np.abs(logits - expected).max()) / scale
        if not difference <= MAX_LOGIT_DIFFERENCE:
            raise ModelError(
                f"the graph of {variant.name} differs from torch by {difference:.2g} standard deviations of the logits"
                f" at batch size {batch}; at most {MAX_LOGIT_DIFFERENCE:g} is accepted",
                "please report this with the output of mf doctor",
            )
        differences[f"batch_{batch}"] = difference
    return differences

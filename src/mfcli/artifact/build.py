"""Building an artifact from a checkpoint: load it with torch, export the graph, compare with torch, write."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.artifact.file import FORMAT_VERSION, METADATA_PREFIX, artifact_key, open_artifact, write_artifact
from mfcli.errors import ModelError
from mfcli.files import cache_write_error
from mfcli.hub.bundled import bundled_file
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label
from mfcli.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

    from mfcli.models.metaformer import MetaFormer

MAX_LOGIT_DIFFERENCE = 1e-4
"""The largest accepted difference from torch, in units of the logits' standard deviation."""


def build_artifact(
    variant: Variant,
    weights_file: Path,
    weights_sha256: str,
    path: Path,
    *,
    labels: tuple[Label, ...] | None = None,
    half_weights: bool = False,
) -> None:
    """Build the artifact of a checkpoint, and its sidecar, at `path`; imports torch and timm.

    Args:
        variant: the model.
        weights_file: the checkpoint.
        weights_sha256: its digest.
        path: the ONNX file to write.
        labels: the classes; None for the variant's, or for numbered ones if the head has another size.
        half_weights: store the weights rounded to float16; they are computed with as float32.

    Raises:
        EngineError: a package that is needed cannot be loaded.
        ModelError: the checkpoint is not this variant's, has another digest, or the graph's logits differ from torch's.
        OutputError: `path` cannot be written.
    """
    from mfcli.models.checkpoint import load_checkpoint, require_packages
    from mfcli.models.preprocess import make_preprocess_plan

    require_packages("onnx", "onnxruntime")
    loaded = load_checkpoint(weights_file, variant, weights_sha256)
    if half_weights:
        loaded.model.half().float()
    proto = _export(loaded.model, variant, half_weights)
    fields = {
        "format_version": FORMAT_VERSION,
        "variant": variant.name,
        "key": artifact_key(variant, weights_sha256, half_weights),
        "weights_sha256": weights_sha256,
        "source_url": variant.url,
        "labels": [(label.wnid, label.name) for label in labels or _choose_labels(variant, loaded.num_classes)],
        "versions": _read_versions(),
        "check": _compare_with_torch(proto, loaded.model, variant),
        "preprocess": asdict(make_preprocess_plan(variant)),
    }
    for name, value in fields.items():
        proto.metadata_props.add(key=METADATA_PREFIX + name, value=json.dumps(value, sort_keys=True))
    try:
        write_artifact(proto, path)
    except OSError as error:
        raise cache_write_error(path.parent, error) from error


def _choose_labels(variant: Variant, num_classes: int) -> tuple[Label, ...]:
    from mfcli.models.labels import load_imagenet_labels, make_numbered_labels

    if num_classes != variant.num_classes:
        return make_numbered_labels(num_classes)
    if variant.pretraining is Pretraining.BUNDLED:
        return open_artifact(bundled_file(f"{variant.name}.onnx"), variant, None, None).labels
    return load_imagenet_labels(num_classes)


def _read_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"mfcli": __version__} | {name: version(name) for name in ("torch", "timm", "onnx", "onnxruntime")}


def _export(model: "MetaFormer", variant: Variant, half_weights: bool) -> "ModelProto":
    from mfcli.artifact.graph import write_graph

    return write_graph(model, variant.input_size, half_weights=half_weights)


def _compare_with_torch(proto: "ModelProto", model: "MetaFormer", variant: Variant) -> dict[str, float]:
    """Return the largest difference from torch's logits at batch sizes 1 and 3, over their standard deviation."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch in (1, 3):
        pixels = torch.randn(batch, *variant.input_size, generator=generator)
        with torch.inference_mode():
            expected = model(pixels)
        (logits,) = session.run(["logits"], {"input": pixels.numpy()})
        if not expected.isfinite().all():
            raise ModelError(
                f"{variant.name} produces NaN or infinite logits with these weights",
                "the file may be damaged, or its training may have diverged",
            )
        share = 0.01 if model.num_classes > 1 else 1.0  # the standard deviation of a single logit is 0
        scale = max(float(expected.std(correction=0)), share * float(expected.abs().mean()), 1e-6)
        difference = float((torch.from_numpy(logits) - expected).abs().max()) / scale
        if difference > MAX_LOGIT_DIFFERENCE:
            raise ModelError(
                f"the graph of {variant.name} differs from torch by {difference:.2g} standard deviations of the logits"
                f" at batch size {batch}; at most {MAX_LOGIT_DIFFERENCE:g} is accepted",
                "please report this with the output of mf doctor",
            )
        differences[f"batch_{batch}"] = difference
    return differences

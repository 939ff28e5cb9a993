"""Tell everything about one model."""

from mfcli.artifact import open_artifact
from mfcli.variants import Pretraining, Variant
from mfcli.weights import bundled_file

Value = str | int | float | None


def describe(variant: Variant) -> dict[str, Value]:
    """Return the row of a variant as flat fields, with where its artifact is and how it was checked if it is there."""
    architecture = variant.architecture
    fields: dict[str, Value] = {
        "name": variant.name,
        "aliases": ", ".join(variant.aliases) or None,
        "family": variant.family.value,
        "depths": "-".join(map(str, architecture.depths)),
        "dims": "-".join(map(str, architecture.dims)),
        "pretraining": variant.pretraining.value,
        "classes": variant.num_classes,
        "params": variant.params,
        "published_params_m": variant.published_params_m,
        "published_macs_g": variant.published_macs_g,
        "published_top1": variant.published_top1,
        "timm_name": variant.timm_name,
        "timm_top1": variant.timm_top1,
        "url": variant.url,
        "input_size": "x".join(map(str, variant.input_size)),
        "crop_pct": variant.crop_pct,
        "interpolation": variant.interpolation,
        "mean": ", ".join(map(str, variant.mean)),
        "std": ", ".join(map(str, variant.std)),
        "artifact": None,
        "artifact_size_bytes": None,
        "weights_sha256": None,
        "resize_shorter_side": None,
        "crop_size": None,
        "check": None,
    }
    if variant.pretraining is Pretraining.BUNDLED:
        artifact = open_artifact(bundled_file(f"{variant.name}.onnx"), variant, None, None)
        fields |= {
            "artifact": str(artifact.path),
            "artifact_size_bytes": artifact.size_bytes,
            "weights_sha256": artifact.weights_sha256,
            "resize_shorter_side": artifact.plan.resize_shorter_side,
            "crop_size": "x".join(map(str, artifact.plan.crop_size)),
            "check": ", ".join(f"{name}: {value:.1e}" for name, value in artifact.check.items()),
        }
    return fields

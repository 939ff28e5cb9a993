"""Describe one model: its row in the registry, and its files on this machine."""

import dataclasses
from pathlib import Path
from typing import Any

from mfcli.artifact.file import Artifact, find_artifacts, locate_artifact
from mfcli.errors import MfError
from mfcli.files import read_json
from mfcli.hub.acquire import Copy, Fetch, FetchOptions, Missing, Use, resolve
from mfcli.hub.bundled import is_bundled
from mfcli.hub.cache import ModelCache, StoredWeights
from mfcli.models.own import ARGS_FILE
from mfcli.models.registry import Variant
from mfcli.outputs.training import METRICS_FILE
from mfcli.settings import Settings


def describe(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return a variant's row as a record, with its checkpoint and artifacts on this machine.

    `resize_shorter_side` is in pixels; the tests compare it with timm's transform for every variant.
    """
    artifacts = find_artifacts(variant, settings)
    cache = ModelCache(settings.cache_dir, variant) if variant.sources else None
    have = cache.find() if cache else None
    own_path = locate_artifact(variant, have.sha256, settings) if have else None
    own = [a for a in artifacts if a.path == own_path or is_bundled(a.path) or variant.folder]
    return {
        **variant.as_record(),
        "resize_shorter_side": int(variant.input_size[1] / variant.crop_pct),
        "crop_size": list(variant.input_size[1:]),
        "weights": _describe_weights(have),
        "place_by_hand": str(cache.manual_path) if cache else None,
        "plan": _describe_plan(variant, settings, has_artifact=bool(own)) if cache else None,
        "artifacts": [_describe_artifact(artifact) for artifact in own],
        "other_artifacts": [_describe_artifact(artifact) for artifact in artifacts if artifact not in own],
        "training": _describe_training(variant.folder) if variant.folder else None,
    }


def _describe_weights(have: StoredWeights | None) -> dict[str, Any] | None:
    if have is None:
        return None
    fields = {**dataclasses.asdict(have), "path": str(have.path), "is_here": have.is_here}
    del fields["identity"]  # internal
    return fields


def _describe_training(folder: Path) -> dict[str, Any] | None:
    """Return what a model of `mf train` learned from, and how good it is; None if its figures cannot be read.

    `top1` and the others are of the pictures set aside, or of the folds where there are none.
    """
    try:
        args, metrics = read_json(folder / ARGS_FILE), read_json(folder / METRICS_FILE)
        judged_by = next((kind for kind in ("val", "out_of_fold") if metrics[kind]), None)
        figures = metrics[judged_by] if judged_by else {}
        names = ("top1", "log_loss", "calibration_error")
        return {
            "base": args["base"],
            "data": args["data"],
            "pictures": metrics["pictures"]["train"],
            "judged_by": judged_by,
            "judged_pictures": figures.get("pictures"),
            **{name: figures.get(name) for name in names},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _describe_plan(variant: Variant, settings: Settings, has_artifact: bool) -> str:
    """Return how the next prediction gets the checkpoint, of which the record is enough if there is an artifact."""
    from mfcli.http import redact_url

    try:
        step = resolve(variant, settings, FetchOptions(keep=not has_artifact)).step
    except MfError as error:
        return f"missing: {error.message}"
    match step:
        case Use(StoredWeights(path=path)) | Copy(path):
            return f"use {path}"
        case Missing(reason):
            return f"missing: {reason.message}"
        case Fetch(sources):
            return f"download {' or '.join(redact_url(url) for _, url in sources)}"


def _describe_artifact(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "size_bytes": artifact.size_bytes,
        "weights_sha256": artifact.weights_sha256,
        "classes": len(artifact.labels),
        "proof": "compared with torch" if artifact.check else "parameter table and finite logits",
        "check": artifact.check,
        "versions": artifact.versions,
    }

"""Describe one model: its row in the registry, and its files on this machine."""

import dataclasses
from typing import Any

from mfcli.artifact.file import Artifact, find_artifacts
from mfcli.hub.cache import ModelCache, StoredWeights
from mfcli.models.registry import Variant
from mfcli.settings import Settings


def describe(variant: Variant, settings: Settings) -> dict[str, Any]:
    """Return a variant's row as a record, with its checkpoint and artifacts on this machine.

    `resize_shorter_side` is in pixels; the tests compare it with timm's transform for every variant.
    """
    cache = ModelCache(settings.cache_dir, variant) if variant.sources else None
    return {
        **variant.as_record(),
        "resize_shorter_side": int(variant.input_size[1] / variant.crop_pct),
        "crop_size": list(variant.input_size[1:]),
        "weights": _describe_weights(cache.find()) if cache else None,
        "place_by_hand": str(cache.manual_path) if cache else None,
        "artifacts": [_describe_artifact(artifact) for artifact in find_artifacts(variant, settings)],
    }


def _describe_weights(have: StoredWeights | None) -> dict[str, Any] | None:
    if have is None:
        return None
    fields = {**dataclasses.asdict(have), "path": str(have.path), "is_here": have.is_here}
    del fields["identity"]  # internal
    return fields


def _describe_artifact(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "size_bytes": artifact.size_bytes,
        "weights_sha256": artifact.weights_sha256,
        "classes": len(artifact.labels),
        "check": artifact.check,
        "versions": artifact.versions,
    }

"""From a model's name to its artifact: found by its checkpoint's digest, or built from the checkpoint.

What is needed only where an artifact is missing is imported on use: the bundled model answers without it.
"""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.artifact.file import (
    Artifact,
    artifact_path,
    find_artifact,
    find_artifacts,
    locate_artifact,
    open_artifact,
    record_mtime,
)
from mfcli.errors import ModelError, UsageError
from mfcli.files import cached_sha256, is_file, lock
from mfcli.hub.bundled import bundled_file
from mfcli.models.own import CHECKPOINT_FILE, MODEL_FILE, read_base
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Label, Progress
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.hub.acquire import FetchOptions
    from mfcli.hub.cache import StoredWeights


def ensure_artifact(
    variant: Variant,
    weights_file: Path | None,
    settings: Settings,
    progress: Progress = lambda _: None,
    fetch: "FetchOptions | None" = None,
) -> Artifact:
    """Return a variant's artifact: from the cache, or built from its checkpoint, which is downloaded if necessary.

    Args:
        variant: the model.
        weights_file: the user's own checkpoint; None for the variant's.
        settings: locate the cache; the bundled model does not use it.
        progress: called before what takes long, and during a download.
        fetch: how the variant's checkpoint is fetched; None for the defaults.

    Raises:
        EngineError: a package that is needed to build an artifact cannot be loaded.
        ModelError: there is no checkpoint and none can be fetched, or it is not this variant's.
        OutputError: the cache is not writable.
        UsageError: the bundled model is to be fetched from elsewhere, or an address is malformed.
    """
    if variant.folder is not None:
        return _open_own(variant, variant.folder, weights_file, settings)
    if weights_file is not None:
        digest, origin = cached_sha256(weights_file, settings.cache_dir / "digests"), os.path.realpath(weights_file)
    elif variant.pretraining is Pretraining.BUNDLED:
        return _open_bundled(variant, fetch)
    else:
        stored = _obtain(variant, settings, progress, fetch)
        weights_file, digest, origin = stored.path, stored.sha256, stored.url or str(stored.path)
    found = _find(variant, weights_file, digest, settings)
    return found or _build(variant, weights_file, digest, origin, settings, progress)


def load_labels(variant: Variant, settings: Settings) -> tuple[Label, ...]:
    """Return the classes of a model in head order; nothing is downloaded or built for it."""
    if variant.pretraining in (Pretraining.BUNDLED, Pretraining.OWN):
        return ensure_artifact(variant, None, settings).labels
    from mfcli.models.labels import load_imagenet_labels

    return load_imagenet_labels(variant.num_classes)


def _obtain(variant: Variant, settings: Settings, progress: Progress, fetch: "FetchOptions | None") -> "StoredWeights":
    """Return a variant's checkpoint, which may be pruned if its artifact is there."""
    from mfcli.hub.acquire import DEFAULT_FETCH, Copy, Fetch, carry_out, resolve
    from mfcli.hub.cache import is_intact

    def get(options: "FetchOptions") -> "StoredWeights":
        plan = resolve(variant, settings, options)
        if settings.compare and isinstance(plan.step, Copy | Fetch):
            from mfcli.artifact.build import require_comparison

            require_comparison()  # before the download
        return carry_out(plan, progress)

    fetch = fetch or DEFAULT_FETCH
    stored = get(fetch)
    if fetch.force:  # without its sidecar an artifact counts as damaged
        with contextlib.suppress(OSError):
            locate_artifact(variant, stored.sha256, settings).with_suffix(".json").unlink(missing_ok=True)
    if not is_intact(stored) and _find(variant, stored.path, stored.sha256, settings) is None:
        stored = get(replace(fetch, keep=True))
    return stored


def _open_own(variant: Variant, folder: Path, weights_file: Path | None, settings: Settings) -> Artifact:
    if weights_file is not None:
        raise UsageError(f"{variant.name} has its weights in {folder}", "name the base model, or leave weights out")
    try:
        artifact = open_artifact(folder / MODEL_FILE, variant, None, _find_checkpoint(folder, settings))
    except ModelError as error:
        raise ModelError(error.message, f"train it again into {folder}, with overwrite=True") from error
    record_mtime(artifact)
    return artifact


def _find_checkpoint(folder: Path, settings: Settings) -> Path | None:
    """Return the checkpoint of the backbone of a model of the user's own, for torch; None if it is gone."""
    if is_file(folder / CHECKPOINT_FILE):
        return folder / CHECKPOINT_FILE
    base, recorded = read_base(folder)
    if recorded is not None and is_file(recorded):
        return recorded
    if base.pretraining is Pretraining.BUNDLED:
        return bundled_file(f"{base.name}.safetensors")
    from mfcli.hub.cache import ModelCache

    with contextlib.suppress(UsageError):  # no cache directory
        if stored := ModelCache(settings.cache_dir, base).find():
            return stored.path
    return None


def _open_bundled(variant: Variant, fetch: "FetchOptions | None") -> Artifact:
    if fetch and fetch.origin:
        raise UsageError(
            f"{variant.name} ships with the package and cannot be fetched from elsewhere",
            "use other weights of this model with mf predict: weights=FILE",
        )
    path = bundled_file(f"{variant.name}.onnx")
    bundled = open_artifact(path, variant, None, path.with_suffix(".safetensors"))
    if (size := bundled.plan.crop_size) != variant.input_size[1:]:
        raise UsageError(
            f"the bundled model takes pictures of {size[1]}x{size[0]} only, not input_size={variant.input_size[1]}",
            f"input_size={size[0]}, or another model: model=caformer_s18",
        )
    if fetch and fetch.digests:
        from mfcli.hub.cache import compare_digest

        hint = "the bundled model changes between releases"
        compare_digest(variant.name, bundled.weights_sha256, fetch.digests, hint)
    return bundled


def _find(variant: Variant, weights_file: Path, digest: str, settings: Settings) -> Artifact | None:
    """Return a checkpoint's artifact if it is in the cache, valid, and compared with torch where that is asked for."""
    with contextlib.suppress(ModelError):
        artifact = find_artifact(variant, digest, weights_file, settings)
        record_mtime(artifact)
        if artifact.check or not settings.compare:
            return artifact
    return None


def _build(
    variant: Variant, weights_file: Path, digest: str, origin: str, settings: Settings, progress: Progress
) -> Artifact:
    from mfcli.artifact.build import build_artifact

    path = artifact_path(variant, digest, settings)
    # one lock per model, not per file: files with the same weights share an artifact, also if they come at once
    with lock(path.with_name(f"{variant.name}.lock"), f"another process that prepares {variant.name}", progress):
        if found := _find(variant, weights_file, digest, settings):  # built by that process
            return found
        progress(f"preparing {variant.name} (once for these weights)")
        others = find_artifacts(variant, settings)
        build_artifact(variant, weights_file, digest, path, origin=origin, others=others, compare=settings.compare)
    return find_artifact(variant, digest, weights_file, settings)

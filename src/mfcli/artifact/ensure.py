"""From a model's name to its artifact: found in the cache, or built after its checkpoint was fetched."""

import contextlib
from functools import partial
from pathlib import Path

from mfcli.artifact.build import build_artifact
from mfcli.artifact.file import Artifact, artifact_key, artifact_path, open_artifact, record_mtime
from mfcli.errors import ModelError, UsageError
from mfcli.files import cached_sha256, lock
from mfcli.hub.acquire import (
    DEFAULT_FETCH,
    FetchOptions,
    adopt_manual_file,
    check_digest,
    fetch_checkpoint,
    has_new_manual_file,
)
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import CheckpointStatus, StoredWeights, check_stored_weights, find_stored_weights
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Progress
from mfcli.settings import Settings


def ensure_artifact(
    variant: Variant,
    weights_file: Path | None,
    settings: Settings,
    progress: Progress = lambda _: None,
    fetch: FetchOptions = DEFAULT_FETCH,
) -> Artifact:
    """Return a variant's artifact: from the cache, or built from its checkpoint, which is downloaded if necessary.

    Args:
        variant: the model.
        weights_file: the user's own checkpoint; None for the variant's.
        settings: locate the cache; the bundled model does not use it.
        progress: called before what takes long, and during a download.
        fetch: how the variant's checkpoint is fetched.

    Raises:
        EngineError: a package that is needed to build an artifact cannot be loaded.
        ModelError: there is no checkpoint and none can be fetched, or it is not this variant's.
        OutputError: the cache is not writable.
        UsageError: the bundled model is to be fetched from elsewhere, or an address is malformed.
    """
    if weights_file is None and variant.pretraining is Pretraining.BUNDLED:
        path = bundled_file(f"{variant.name}.onnx")
        bundled = open_artifact(path, variant, None, path.with_suffix(".safetensors"))
        _check_fetch_of_bundled(bundled, fetch)
        return bundled
    if weights_file is not None:
        digest = cached_sha256(weights_file, settings.cache_dir / "digests")
    else:
        check = partial(_try_build, variant, settings, progress)
        if not fetch.force and not fetch.origin and has_new_manual_file(variant, settings):
            adopt_manual_file(variant, settings, progress, check)
        have = find_stored_weights(variant, settings)
        if fetch == DEFAULT_FETCH and have and (artifact := _find_artifact(variant, have, settings)):
            return artifact
        have = fetch_checkpoint(variant, settings, progress, check, fetch)
        weights_file, digest = have.path, have.sha256
    path = artifact_path(variant, digest, settings)
    if fetch.force:  # without its sidecar an artifact counts as damaged
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
    return _open_or_build(variant, weights_file, digest, path, progress)


def _check_fetch_of_bundled(bundled: Artifact, fetch: FetchOptions) -> None:
    if fetch.origin:
        raise UsageError(
            f"{bundled.variant} ships with the package and cannot be fetched from elsewhere",
            "use other weights of this model with mf predict: weights=FILE",
        )
    hint = "it ships with the package: other releases have another"
    check_digest(bundled.variant, bundled.weights_sha256, fetch, hint)


def _try_build(variant: Variant, settings: Settings, progress: Progress, path: Path) -> None:
    """Raise a ModelError for a file that is not the variant's checkpoint, which only building an artifact shows."""
    ensure_artifact(variant, path, settings, progress)


def _open_or_build(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> Artifact:
    try:
        return _open_cached(variant, digest, path, weights_file)
    except ModelError:
        _build_once(variant, weights_file, digest, path, progress)
        return _open_cached(variant, digest, path, weights_file)


def _open_cached(variant: Variant, digest: str, path: Path, checkpoint: Path) -> Artifact:
    artifact = open_artifact(path, variant, artifact_key(variant, digest), checkpoint)
    record_mtime(artifact)
    return artifact


def _find_artifact(variant: Variant, have: StoredWeights, settings: Settings) -> Artifact | None:
    """Return the artifact of a checkpoint, intact or pruned, if it is valid; None if another file replaced it."""
    if check_stored_weights(have) is CheckpointStatus.OTHER:
        return None
    with contextlib.suppress(ModelError):
        return _open_cached(variant, have.sha256, artifact_path(variant, have.sha256, settings), have.path)
    return None


def _build_once(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> None:
    with lock(path.with_suffix(".lock"), f"another process that prepares {variant.name}", progress):
        try:
            open_artifact(path, variant, artifact_key(variant, digest), weights_file)
        except ModelError:  # no other process has built it meanwhile
            progress(f"preparing {variant.name} (once for these weights)")
            build_artifact(variant, weights_file, digest, path)

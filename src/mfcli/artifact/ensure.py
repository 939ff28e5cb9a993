"""The artifact of a model, found or built: the one call that tasks make to get a model ready."""

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    pass
from mfcli.artifact.build import build_artifact
from mfcli.artifact.file import Artifact, artifact_key, artifact_path, open_artifact


def ensure_artifact(
    variant: Variant,
    weights_file: Path | None,
    settings: Settings,
    progress: Progress = lambda _: None,
    fetch: FetchOptions = DEFAULT_FETCH,
) -> Artifact:
    """Return the ready artifact of a variant: looked up, else built, its weights downloaded first where needed.

    Args:
        variant: the row.
        weights_file: a checkpoint of the user's; None for the variant's own.
        settings: say where artifacts are kept; that folder is not touched for the bundled model.
        progress: told before something that takes long, and how far a download is.
        fetch: how the variant's own checkpoint is wanted.

    Raises:
        EngineError: an artifact is to be made, and a package that it takes cannot be loaded.
        ModelError: there are no weights and none can be had, or they are not this variant's.
        OutputError: the artifact cannot be kept.
    """
    if weights_file is None and variant.pretraining is Pretraining.BUNDLED:
        path = bundled_file(f"{variant.name}.onnx")
        bundled = open_artifact(path, variant, None, path.with_suffix(".safetensors"))
        _check_bundled(bundled, fetch)
        return bundled
    if weights_file is not None:
        digest = cached_sha256(weights_file, settings.cache_dir / "digests")
    else:
        check = partial(_try_file, variant, settings, progress)
        if not fetch.force and not fetch.origin and has_new_manual_file(variant, settings):
            adopt_manual_file(variant, settings, progress, check)
        have = find_stored_weights(variant, settings)
        if fetch == DEFAULT_FETCH and have and (ready := _ready(variant, have, settings)):
            return ready
        have = fetch_checkpoint(variant, settings, progress, check, fetch)
        weights_file, digest = have.path, have.sha256
    path = artifact_path(variant, digest, settings)
    if fetch.force:  # without its sidecar an artifact counts as torn
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
    return _open_or_build(variant, weights_file, digest, path, progress)


def _check_bundled(bundled: Artifact, fetch: FetchOptions) -> None:
    """It is never fetched, so it can only be asked whether it is the one that is meant."""
    if fetch.origin:
        raise UsageError(
            f"{bundled.variant} ships with the package and is taken from nowhere else",
            f"other weights of this model: mf predict --model {bundled.variant} --weights FILE",
        )
    check_digest(
        bundled.variant, bundled.weights_sha256, fetch, "it ships with the package: another release has another"
    )


def _try_file(variant: Variant, settings: Settings, progress: Progress, path: Path) -> None:
    """Raise a ModelError for a file that is not the variant's checkpoint: only making its artifact tells."""
    ensure_artifact(variant, path, settings, progress)


def _open_or_build(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> Artifact:
    key = artifact_key(variant, digest)
    try:
        return open_artifact(path, variant, key, weights_file)
    except ModelError:
        _build_once(variant, weights_file, digest, path, progress)
        return open_artifact(path, variant, key, weights_file)


def _ready(variant: Variant, have: StoredWeights, settings: Settings) -> Artifact | None:
    """The good artifact of a checkpoint, which itself may be gone, unless another file is in its place."""
    if check_stored_weights(have) is CheckpointStatus.OTHER:
        return None
    with contextlib.suppress(ModelError):
        key = artifact_key(variant, have.sha256)
        return open_artifact(artifact_path(variant, have.sha256, settings), variant, key, have.path)
    return None


def _build_once(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> None:
    with lock(path.with_suffix(".lock"), f"another process that prepares {variant.name}", progress):
        try:
            open_artifact(path, variant, artifact_key(variant, digest), weights_file)
        except ModelError:  # nobody else has built it meanwhile
            progress(f"preparing {variant.name} (once for these weights)")
            build_artifact(variant, weights_file, digest, path)

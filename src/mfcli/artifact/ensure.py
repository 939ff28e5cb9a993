"""The artifact of a model, found or built: the one call that tasks make to get a model ready."""

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.errors import ModelError, UsageError
from mfcli.files import lock, remembered_sha256
from mfcli.hub.acquire import PLAIN_WISH, Wish, check_digest, obtain, take_by_hand, waits_by_hand
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import State, StoredWeights, state_of, stored
from mfcli.models.registry import Pretraining, Variant
from mfcli.results import Progress
from mfcli.settings import Settings

if TYPE_CHECKING:
    pass
from mfcli.artifact.build import build
from mfcli.artifact.file import Artifact, artifact_path, cache_key, open_artifact


def ensure(
    variant: Variant,
    weights_file: Path | None,
    settings: Settings,
    progress: Progress = lambda _: None,
    wish: Wish = PLAIN_WISH,
) -> Artifact:
    """Return the ready artifact of a variant: looked up, else built, its weights downloaded first where needed.

    Args:
        variant: the row.
        weights_file: a checkpoint of the user's; None for the variant's own.
        settings: say where artifacts are kept; that folder is not touched for the bundled model.
        progress: told before something that takes long, and how far a download is.
        wish: how the variant's own checkpoint is wanted.

    Raises:
        EngineError: an artifact is to be made, and a package that it takes cannot be loaded.
        ModelError: there are no weights and none can be had, or they are not this variant's.
        OutputError: the artifact cannot be kept.
    """
    if weights_file is None and variant.pretraining is Pretraining.BUNDLED:
        path = bundled_file(f"{variant.name}.onnx")
        bundled = open_artifact(path, variant, None, path.with_suffix(".safetensors"))
        _check_bundled(bundled, wish)
        return bundled
    if weights_file is not None:
        digest = remembered_sha256(weights_file, settings.cache_dir / "digests")
    else:
        check = partial(_try_file, variant, settings, progress)
        if not wish.force and not wish.origin and waits_by_hand(variant, settings):
            take_by_hand(variant, settings, progress, check)
        have = stored(variant, settings)
        if wish == PLAIN_WISH and have and (ready := _ready(variant, have, settings)):
            return ready
        have = obtain(variant, settings, progress, check, wish)
        weights_file, digest = have.path, have.sha256
    path = artifact_path(variant, digest, settings)
    if wish.force:  # without its sidecar an artifact counts as torn
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
    return _open_or_build(variant, weights_file, digest, path, progress)


def _check_bundled(bundled: Artifact, wish: Wish) -> None:
    """It is never fetched, so it can only be asked whether it is the one that is meant."""
    if wish.origin:
        raise UsageError(
            f"{bundled.variant} ships with the package and is taken from nowhere else",
            f"other weights of this model: mf predict --model {bundled.variant} --weights FILE",
        )
    check_digest(
        bundled.variant, bundled.weights_sha256, wish, "it ships with the package: another release has another"
    )


def _try_file(variant: Variant, settings: Settings, progress: Progress, path: Path) -> None:
    """Raise a ModelError for a file that is not the variant's checkpoint: only making its artifact tells."""
    ensure(variant, path, settings, progress)


def _open_or_build(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> Artifact:
    key = cache_key(variant, digest)
    try:
        return open_artifact(path, variant, key, weights_file)
    except ModelError:
        _build_once(variant, weights_file, digest, path, progress)
        return open_artifact(path, variant, key, weights_file)


def _ready(variant: Variant, have: StoredWeights, settings: Settings) -> Artifact | None:
    """The good artifact of a checkpoint, which itself may be gone, unless another file is in its place."""
    if state_of(have) is State.OTHER:
        return None
    with contextlib.suppress(ModelError):
        key = cache_key(variant, have.sha256)
        return open_artifact(artifact_path(variant, have.sha256, settings), variant, key, have.path)
    return None


def _build_once(variant: Variant, weights_file: Path, digest: str, path: Path, progress: Progress) -> None:
    with lock(path.with_suffix(".lock"), f"another process that prepares {variant.name}", progress):
        try:
            open_artifact(path, variant, cache_key(variant, digest), weights_file)
        except ModelError:  # nobody else has built it meanwhile
            progress(f"preparing {variant.name} (once for these weights)")
            build(variant, weights_file, digest, path)

"""Fetch checkpoints and build their artifacts, or report what would be fetched."""

import contextlib
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import MfError, ModelError, OutputError, UsageError
from mfcli.files import cached_sha256, is_glob, is_url
from mfcli.hub.acquire import (
    FETCH_AGAIN,
    FetchOptions,
    check_digest,
    has_new_manual_file,
    missing_weights_error,
    resolve_sources,
)
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import StoredWeights, find_stored_weights, is_intact, manual_path
from mfcli.hub.candidates import find_candidates
from mfcli.models.registry import Variant, find_variant, list_variants
from mfcli.results import Progress
from mfcli.settings import Settings


class DownloadStatus(StrEnum):
    """The outcome for one model; WANTED, in a dry run, is a model that would be fetched."""

    READY = "ready"
    WANTED = "wanted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """The outcome for one model.

    Attributes:
        name: the model.
        status: the outcome.
        size_bytes: size of the checkpoint, None if unknown.
        sha256: digest of the checkpoint, None if unknown.
        path: where the checkpoint is, or would be.
        url: where it was fetched from, or would be.
        error: why it failed, None if it did not.
    """

    name: str
    status: DownloadStatus
    size_bytes: int | None
    sha256: str | None
    path: str
    url: str | None
    error: MfError | None = None


def choose(names: list[str]) -> list[Variant]:
    """Return the models that names and globs match, each once; those of a glob in the registry's order.

    Raises:
        ModelError: a name is unknown, or a glob matches nothing.
    """
    chosen: dict[str, Variant] = {}
    for name in names:
        if is_glob(name):
            found = [v for v in list_variants() if v.sources and v.matches(name)]
            if not found:
                raise ModelError(f"no model matches {name!r}", "see mf list-models")
        else:
            found = [find_variant(name)]
        chosen |= {variant.name: variant for variant in found}
    return list(chosen.values())


def download(names: list[str], settings: Settings, fetch: FetchOptions, progress: Progress) -> list[DownloadResult]:
    """Fetch the checkpoints of models and build their artifacts; one that fails does not stop the others.

    Args:
        names: names and globs of models.
        settings: locate the caches and the hub.
        fetch: how the checkpoints are fetched.
        progress: called before what takes long, and during a download.

    Raises:
        ModelError: a name is unknown.
        UsageError: an origin or a digest is given for several models.
    """
    fetch = replace(fetch, keep=True)
    return [_download(variant, settings, fetch, progress) for variant in _choose_variants(names, fetch)]


def _choose_variants(names: list[str], fetch: FetchOptions) -> list[Variant]:
    variants = choose(names)
    if len(variants) > 1 and (fetch.origin or fetch.expect_sha256):
        given = "origin=FILE|URL" if fetch.origin else "expect_sha256=HEX"
        raise UsageError(f"{given} applies to a single model, not to {len(variants)}", "name one model")
    return variants


def _download(variant: Variant, settings: Settings, fetch: FetchOptions, progress: Progress) -> DownloadResult:
    try:
        artifact = ensure_artifact(variant, None, settings, progress, fetch)
    except (ModelError, OutputError) as error:
        place = manual_path(variant, settings) if variant.sources else bundled_file(f"{variant.name}.onnx")
        origin = _find_origin(variant, settings, fetch)
        return DownloadResult(variant.name, DownloadStatus.FAILED, None, None, str(place), origin, error)
    have = find_stored_weights(variant, settings) if variant.sources else None
    if have is None:  # the bundled model
        return DownloadResult(
            variant.name, DownloadStatus.READY, artifact.size_bytes, artifact.weights_sha256, str(artifact.path), None
        )
    return DownloadResult(variant.name, DownloadStatus.READY, have.size_bytes, have.sha256, str(have.path), have.url)


def _find_origin(variant: Variant, settings: Settings, fetch: FetchOptions) -> str | None:
    """Return the first source of a checkpoint, without secrets."""
    from mfcli.http import redact_url

    if fetch.origin and not is_url(fetch.origin):
        return os.path.realpath(fetch.origin)
    with contextlib.suppress(UsageError):  # offline, MF_ENDPOINT need not be valid
        return next((redact_url(url) for _, url in resolve_sources(variant, settings, fetch)), None)
    return None


def plan(names: list[str], settings: Settings, fetch: FetchOptions, progress: Progress) -> list[DownloadResult]:
    """Return what `download` would do, without doing it; unless offline, sizes are requested from the servers.

    Args:
        names: names and globs of models.
        settings: locate the caches and the hub.
        fetch: how the checkpoints would be fetched.
        progress: called with a message before each retry.

    Raises:
        ModelError: a name is unknown.
        UsageError: an origin or a digest is given for several models.
    """
    return [_plan(variant, settings, fetch, progress) for variant in _choose_variants(names, fetch)]


def _plan(variant: Variant, settings: Settings, fetch: FetchOptions, progress: Progress) -> DownloadResult:
    if not variant.sources:
        return _download(variant, settings, fetch, progress)
    have = find_stored_weights(variant, settings)
    place = str(manual_path(variant, settings))
    if fetch.origin and not is_url(fetch.origin):
        return _plan_copy(variant, settings, fetch, Path(fetch.origin), place)
    if not fetch.origin and not fetch.force:
        cached = have if have and is_intact(have) else None
        for candidate in find_candidates(variant, settings):
            if cached and not (has_new_manual_file(variant, settings) and str(candidate.path) == place):
                continue
            copy = _plan_copy(variant, settings, fetch, candidate.path, place)
            if copy.status is DownloadStatus.WANTED and {copy.sha256} >= {
                v.lower() for v in candidate.expected.values()
            }:
                return copy
        if cached:
            return _plan_use(variant, cached, fetch)
    if settings.offline:
        origin, error = _find_origin(variant, settings, fetch), missing_weights_error(variant, settings, fetch)
        return DownloadResult(variant.name, DownloadStatus.FAILED, None, None, place, origin, error)
    return _plan_download(variant, settings, fetch, progress, place)


def _plan_use(variant: Variant, have: StoredWeights, fetch: FetchOptions) -> DownloadResult:
    ready = DownloadResult(variant.name, DownloadStatus.READY, have.size_bytes, have.sha256, str(have.path), have.url)
    try:
        check_digest(str(have.path), have.sha256, fetch, FETCH_AGAIN)
    except ModelError as error:
        return replace(ready, status=DownloadStatus.FAILED, error=error)
    return ready


def _plan_copy(variant: Variant, settings: Settings, fetch: FetchOptions, origin: Path, place: str) -> DownloadResult:
    shown = os.path.realpath(origin)
    try:
        digest = cached_sha256(origin, settings.cache_dir / "digests")
        check_digest(str(origin), digest, fetch)
        size_bytes = origin.stat().st_size
    except ModelError as error:
        return DownloadResult(variant.name, DownloadStatus.FAILED, None, None, place, shown, error)
    return DownloadResult(variant.name, DownloadStatus.WANTED, size_bytes, digest, place, shown)


def _plan_download(
    variant: Variant, settings: Settings, fetch: FetchOptions, progress: Progress, place: str
) -> DownloadResult:
    from mfcli.http import SourceError, UnreachableError, open_session, redact_url, resolve_url

    failure: ModelError | None = None
    address = variant.url
    for source, url in resolve_sources(variant, settings, fetch):
        address, remote = redact_url(url), None
        try:
            with open_session() as session:
                remote = resolve_url(session, url, progress)
            if remote.sha256:
                check_digest(address, remote.sha256, fetch)
        except UnreachableError as error:  # the download itself would not try other sources either
            failure = ModelError(error.message, error.hint or "run the same command again")
            break
        except SourceError as error:
            failure = ModelError(error.message, f"get the file elsewhere and place it at {place}")
        except ModelError as error:
            known = (remote.size_bytes, remote.sha256) if remote else (None, None)
            return DownloadResult(variant.name, DownloadStatus.FAILED, *known, place, address, error)
        else:
            path = str(Path(place).with_name(source.file_name)) if source in variant.sources else place
            return DownloadResult(variant.name, DownloadStatus.WANTED, remote.size_bytes, remote.sha256, path, address)
    return DownloadResult(variant.name, DownloadStatus.FAILED, None, None, place, address, failure)

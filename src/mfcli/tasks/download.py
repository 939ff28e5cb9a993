"""Fetch checkpoints and build their artifacts, or report what would be fetched."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from mfcli.artifact.ensure import ensure_artifact
from mfcli.errors import MfError, ModelError, OutputError, UsageError
from mfcli.files import is_glob, is_url
from mfcli.hub.acquire import Copy, Fetch, FetchOptions, Missing, Plan, Use, request_metadata, resolve, resolve_sources
from mfcli.hub.bundled import bundled_file
from mfcli.hub.cache import ModelCache
from mfcli.hub.pins import write_pin
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
        EngineError: artifacts are to be compared with torch, which cannot be loaded.
        ModelError: a name is unknown.
        UsageError: an origin or a digest is given for several models.
    """
    return _report_each(_download, names, settings, fetch, progress)


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
    return _report_each(_plan, names, settings, fetch, progress)


_Report = Callable[[Variant, Settings, FetchOptions, Progress], DownloadResult]


def _report_each(
    report: _Report, names: list[str], settings: Settings, fetch: FetchOptions, progress: Progress
) -> list[DownloadResult]:
    """Return the outcome for each model; one whose report raises has failed."""
    variants = choose(names)
    if len(variants) > 1 and (fetch.origin or fetch.expect_sha256):
        given = "origin=FILE|URL" if fetch.origin else "expect_sha256=HEX"
        raise UsageError(f"{given} applies to a single model, not to {len(variants)}", "name one model")
    results = []
    for variant in variants:
        try:
            results.append(report(variant, settings, replace(fetch, keep=True), progress))
        except (ModelError, OutputError) as error:
            results.append(_report_failure(variant, settings, fetch, error))
    return results


def _report_failure(variant: Variant, settings: Settings, fetch: FetchOptions, error: MfError) -> DownloadResult:
    from mfcli.http import redact_url

    cache = ModelCache(settings.cache_dir, variant)
    place = cache.manual_path if variant.sources else bundled_file(f"{variant.name}.onnx")
    url = os.path.realpath(fetch.origin) if fetch.origin and not is_url(fetch.origin) else None
    with contextlib.suppress(UsageError):  # offline, MF_ENDPOINT need not be valid
        url = url or next((redact_url(url) for _, url in resolve_sources(variant, settings, fetch)), None)
    return DownloadResult(variant.name, DownloadStatus.FAILED, None, None, str(place), url, error)


def _download(variant: Variant, settings: Settings, fetch: FetchOptions, progress: Progress) -> DownloadResult:
    if fetch.pin and not variant.sources:
        raise UsageError(f"{variant.name} is pinned by the version of the package", "pin a model of mf list-models")
    artifact = ensure_artifact(variant, None, settings, progress, fetch)
    have = ModelCache(settings.cache_dir, variant).find() if variant.sources else None
    if have is None:  # the bundled model
        return DownloadResult(
            variant.name, DownloadStatus.READY, artifact.size_bytes, artifact.weights_sha256, str(artifact.path), None
        )
    if fetch.pin:
        write_pin(have, variant.name, settings)
    return DownloadResult(variant.name, DownloadStatus.READY, have.size_bytes, have.sha256, str(have.path), have.url)


def _plan(variant: Variant, settings: Settings, fetch: FetchOptions, progress: Progress) -> DownloadResult:
    if not variant.sources:
        return _download(variant, settings, fetch, progress)
    return _describe_plan(resolve(variant, settings, fetch), progress)


def _describe_plan(plan: Plan, progress: Progress) -> DownloadResult:
    from mfcli.http import redact_url

    name = plan.variant.name
    match plan.step:
        case Missing(error):
            raise error
        case Use(have):
            return DownloadResult(name, DownloadStatus.READY, have.size_bytes, have.sha256, str(have.path), have.url)
        case Copy(path, sha256, size_bytes, target):
            origin = os.path.realpath(path)
            return DownloadResult(name, DownloadStatus.WANTED, size_bytes, sha256, str(target), origin)
        case Fetch() as step:
            source, remote = request_metadata(plan, step, progress)
            path, url = plan.cache.choose_path(source.file_name), redact_url(remote.url)
            return DownloadResult(name, DownloadStatus.WANTED, remote.size_bytes, remote.sha256, str(path), url)

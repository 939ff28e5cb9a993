"""Getting a model's checkpoint into the cache: from a local file, other programs' caches, or a download.

Knows nothing of artifacts. What the cache already holds, and in which state, is the business of cache.py.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import (
    ELSEWHERE,
    cached_sha256,
    is_file,
    is_url,
    lock,
    sha256_of,
    write_atomically,
)
from mfcli.hub.cache import (
    CheckpointStatus,
    StoredWeights,
    check_stored_weights,
    checkpoint_folder,
    choose_path,
    file_identity,
    find_stored_weights,
    is_intact,
    is_writable,
    manual_path,
    sidecar_path,
    store_checkpoint,
)
from mfcli.hub.candidates import find_candidates, published_digest
from mfcli.hub.first_digests import read_first_digest, record_first_digest
from mfcli.models.registry import HUB, Variant, WeightsSource
from mfcli.results import Progress
from mfcli.settings import Settings

FETCH_AGAIN = "fetch it again: force=True"
"""What to do about a cached checkpoint that is not the requested one."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How a checkpoint is fetched.

    Attributes:
        force: fetch it again although it is in the cache.
        origin: an address or a file to take it from, instead of the model's published sources.
        expect_sha256: the digest it must have.
        keep: whether the checkpoint itself must be in the cache, not only its artifact.
    """

    force: bool = False
    origin: str | None = None
    expect_sha256: str | None = None
    keep: bool = False


DEFAULT_FETCH = FetchOptions()


Check = Callable[[Path], object]
"""Raises a ModelError for a file that is not the model's checkpoint."""


def fetch_checkpoint(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions = DEFAULT_FETCH
) -> StoredWeights:
    """Return a model's checkpoint: from the cache, from another program's cache, or downloaded and verified.

    Concurrent processes wait for the first one to fetch it.

    Args:
        variant: the model.
        settings: locate the caches and the hub.
        progress: called before what takes long, and during a download.
        check: tries each local file, and a download without a published digest, before it is used.
        fetch: how it is fetched.

    Raises:
        EngineError: from `check`.
        ModelError: it is missing and cannot be fetched: offline, no source has it, or it has another digest.
        OutputError: the cache is not writable.
        UsageError: the origin, or MF_ENDPOINT, is not an address.
    """
    if cached := _find_cached(variant, settings, fetch):
        return cached
    folder = checkpoint_folder(variant, settings)
    try:
        with lock(folder / "lock", f"another process that fetches {variant.name}", progress):
            return _find_cached(variant, settings, fetch) or _obtain(variant, settings, progress, check, fetch)
    except OutputError as error:
        have = find_stored_weights(variant, settings)
        if settings.offline and not fetch.origin and next(find_candidates(variant, settings), None) is None:
            raise missing_weights_error(variant, settings, fetch) from error
        if have and not is_writable(folder) and check_stored_weights(have) is CheckpointStatus.OTHER:
            raise ModelError(f"{have.path} changed since it was prepared, and {error.message}", ELSEWHERE) from error
        raise


def _find_cached(variant: Variant, settings: Settings, fetch: FetchOptions) -> StoredWeights | None:
    """Return the checkpoint in the cache, if it is intact and nothing else is asked for."""
    have = find_stored_weights(variant, settings)
    if have is None or fetch.force or fetch.origin or not is_intact(have):
        return None
    check_digest(str(have.path), have.sha256, fetch, FETCH_AGAIN)
    return have


def adopt_manual_file(variant: Variant, settings: Settings, progress: Progress, check: Check) -> None:
    """Use a file that the user placed beside another checkpoint of the model, if it passes `check`.

    One that fails is reported once, and stays in place.

    Args:
        variant: the model.
        settings: locate the cache.
        progress: told the outcome.
        check: as for `fetch_checkpoint`.

    Raises:
        OutputError: the cache is not writable.
    """
    with lock(checkpoint_folder(variant, settings) / "lock", f"another process that fetches {variant.name}", progress):
        if has_new_manual_file(variant, settings):
            candidate = next(find_candidates(variant, settings))
            try:
                _adopt(variant, settings, candidate.path, candidate.expected, check, copy=False)
            except ModelError as error:
                progress(f"not used: {error.message}")
                _record_rejection(candidate.path)
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")


def has_new_manual_file(variant: Variant, settings: Settings) -> bool:
    """Whether the user placed a file beside another checkpoint of the model that can be tried and was not yet."""
    place = manual_path(variant, settings)
    if not is_file(place) or is_file(sidecar_path(place)) or not is_writable(place.parent):
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_rejection_path(place).read_bytes()) == file_identity(place.stat()):
            return False
    return find_stored_weights(variant, settings) is not None


def _rejection_path(place: Path) -> Path:
    return place.with_name("refused.json")


def _record_rejection(place: Path) -> None:
    with contextlib.suppress(OSError):
        write_atomically(_rejection_path(place), json.dumps(file_identity(place.stat())).encode())


def check_digest(what: str, sha256: str, fetch: FetchOptions, hint: str = "use another file: origin=FILE|URL") -> None:
    """Compare a digest with the requested one, if any.

    Args:
        what: the file or address whose digest it is.
        sha256: the digest.
        fetch: has the requested digest.
        hint: the error's hint.

    Raises:
        ModelError: they differ.
    """
    _compare_digest(what, sha256, _expect_digests(fetch), hint)


def _compare_digest(what: str, sha256: str, expected: Mapping[str, str], hint: str) -> None:
    for label, value in expected.items():
        if value.lower() != sha256:
            raise ModelError(f"{what} has SHA-256 {sha256}, but {label} is {value.lower()}", hint)


def _obtain(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions
) -> StoredWeights:
    if fetch.origin and not is_url(fetch.origin):
        return _adopt(variant, settings, Path(fetch.origin), _expect_digests(fetch), check, copy=True)
    rejected: list[str] = []
    if not fetch.force and not fetch.origin:
        for candidate in find_candidates(variant, settings):
            expected = _expect_digests(fetch) | candidate.expected
            try:
                found = _adopt(variant, settings, candidate.path, expected, check, copy=candidate.is_elsewhere)
            except ModelError as error:
                rejected.append(error.message)
                progress(f"not used: {error.message}")
                if candidate.path == manual_path(variant, settings):
                    _record_rejection(candidate.path)
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")
                return found
    if settings.offline:
        raise missing_weights_error(variant, settings, fetch, rejected)
    return _try_sources(variant, settings, progress, check, fetch)


def missing_weights_error(
    variant: Variant, settings: Settings, fetch: FetchOptions, rejected: Sequence[str] = ()
) -> ModelError:
    """Return the error of a checkpoint that is needed and cannot be fetched while offline.

    Args:
        variant: the model.
        settings: locate the cache.
        fetch: how it was to be fetched.
        rejected: why each local file was not used.
    """
    if fetch.force or fetch.origin:
        hint = "to use a local file: origin=FILE" if fetch.origin else "to use the cached file: omit force=True"
        return ModelError(f"cannot fetch {variant.name} while offline", hint)
    hint = f"when online: mf download {variant.name}; or place the file at {manual_path(variant, settings)}"
    if rejected:
        return ModelError(f"no file on this machine has the weights of {variant.name}: {'; '.join(rejected)}", hint)
    return ModelError(
        f"the weights of {variant.name} are not on this machine and cannot be fetched while offline", hint
    )


def resolve_sources(variant: Variant, settings: Settings, fetch: FetchOptions) -> list[tuple[WeightsSource, str]]:
    """Return the sources of a checkpoint in order, each with the address to request.

    Args:
        variant: the model.
        settings: has the endpoint.
        fetch: may name another origin.

    Raises:
        UsageError: one is not a web address.
    """
    sources = (WeightsSource(fetch.origin),) if fetch.origin else variant.sources
    resolved = [(source, _apply_endpoint(source.url, settings)) for source in sources]
    for _, url in resolved:
        try:
            parts = urlsplit(url)
            is_web_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_web_address = False
        if not is_web_address:
            raise UsageError(f"{url!r} is not a web address", "check origin=URL and MF_ENDPOINT: https://...")
    return resolved


def _apply_endpoint(url: str, settings: Settings) -> str:
    """Return an address with the Hugging Face hub's host replaced by the configured endpoint; others are unchanged."""
    if settings.endpoint and url.startswith(f"{HUB}/"):
        return settings.endpoint.rstrip("/") + url.removeprefix(HUB)
    return url


def _try_sources(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions
) -> StoredWeights:
    from mfcli.http import SourceError, UnreachableError

    failures: list[SourceError] = []
    sources = resolve_sources(variant, settings, fetch)
    for source, url in sources:
        try:
            return _download(variant, source, url, settings, progress, check, fetch)
        except UnreachableError as error:
            hint = f"run the same command again to resume; or place the file at {manual_path(variant, settings)}"
            raise ModelError(error.message, error.hint or hint) from error
        except SourceError as error:
            failures.append(error)
            if len(sources) > 1:
                progress(error.message)
    hints = dict.fromkeys(error.hint for error in failures if error.hint)
    raise ModelError(
        f"cannot fetch {variant.name} from any source: {'; '.join(error.message for error in failures)}",
        "; ".join(hints) or f"get the file elsewhere and place it at {manual_path(variant, settings)}",
    )


def _expect_digests(fetch: FetchOptions) -> dict[str, str]:
    return {} if fetch.expect_sha256 is None else {"the requested digest": fetch.expect_sha256}


def _download(
    variant: Variant,
    source: WeightsSource,
    url: str,
    settings: Settings,
    progress: Progress,
    check: Check,
    fetch: FetchOptions,
) -> StoredWeights:
    from mfcli.http import SourceError, redact_url
    from mfcli.hub.download import download_file

    expected = _expect_digests(fetch) | published_digest(source)
    fetched = download_file(
        url,
        settings.cache_dir / "partial",
        expected_sha256=expected,
        first_sha256=read_first_digest(variant, source.url, settings),
        max_bytes=16 * variant.params + (1 << 24),  # four times the float32 weights: with an optimizer's state
        name=variant.name,
        progress=progress,
    )
    if fetch.origin or not (expected or fetched.remote.sha256):  # no published digest
        try:
            check(fetched.path)
        except ModelError as error:
            fetched.path.unlink(missing_ok=True)
            raise SourceError(f"{redact_url(url)} is not the checkpoint: {error.message}") from error
    fields = {
        "url": redact_url(url),
        "etag": fetched.remote.etag,
        "commit": fetched.remote.commit,
        "sha256": fetched.sha256,
    }
    kept = store_checkpoint(choose_path(variant, settings, source.file_name), fetched.path.replace, fields)
    record_first_digest(variant, source.url, settings, fetched.sha256)
    return kept


def _adopt(
    variant: Variant, settings: Settings, path: Path, expected: Mapping[str, str], check: Check, *, copy: bool
) -> StoredWeights:
    """Use a local file as the model's checkpoint, after its digest was compared and `check` has passed."""
    digest = cached_sha256(path, settings.cache_dir / "digests")
    _compare_digest(str(path), digest, expected, "fetch the file again")
    check(path)
    if cached_sha256(path, settings.cache_dir / "digests") != digest:  # the check takes seconds
        raise ModelError(f"{path} changed while it was prepared", "run the same command again")
    fields = {"url": None, "etag": None, "commit": None, "sha256": digest}
    if not copy:
        return store_checkpoint(path, lambda _: None, fields)
    return store_checkpoint(choose_path(variant, settings, path.name), partial(_copy_verified, path, digest), fields)


def _copy_verified(source: Path, sha256: str, target: Path) -> None:
    copy = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        if sha256_of(copy) != sha256:
            raise ModelError(f"{source} changed while it was copied", "run the same command again")
        copy.replace(target)
    finally:
        copy.unlink(missing_ok=True)

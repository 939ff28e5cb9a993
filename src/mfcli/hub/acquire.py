"""Getting a model's checkpoint: `resolve` decides how, and `carry_out` does it.

`resolve` reads files and nothing else; a dry run prints what it returns. Both know nothing of artifacts. What the cache
holds, and in which state, is the business of cache.py.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import ELSEWHERE, cache_write_error, is_file, is_url, known_sha256, list_files, lock, sha256_of
from mfcli.hub.cache import (
    CheckpointStatus,
    ModelCache,
    StoredWeights,
    check_stored_weights,
    compare_digest,
    is_untouched,
    is_writable,
    read_sidecar,
    record_identity,
    sidecar_path,
)
from mfcli.hub.pins import Pin, read_pins
from mfcli.models.registry import Variant, WeightsSource
from mfcli.results import Progress
from mfcli.settings import HUB, Settings

if TYPE_CHECKING:
    from mfcli.http import RemoteFileInfo
    from mfcli.hub.download import Download

_Result = TypeVar("_Result")
_HUB_URL = re.compile(rf"{re.escape(HUB)}/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How a checkpoint is fetched.

    Attributes:
        force: fetch it again although it is in the cache.
        origin: an address or a file to take it from, instead of the model's published sources.
        expect_sha256: the digest it must have.
        keep: whether the checkpoint itself must be in the cache, not only its record, by which its artifact is found.
        pin: whether it is to be pinned; with `force`, in place of the checkpoint that is pinned.
        pinned: what the lock file says of it, which `resolve` finds out.
    """

    force: bool = False
    origin: str | None = None
    expect_sha256: str | None = None
    keep: bool = False
    pin: bool = False
    pinned: Pin | None = None

    @property
    def digests(self) -> dict[str, str]:
        """The requested and the pinned digest, if any, under the words that an error calls them by."""
        requested = {} if self.expect_sha256 is None else {"the requested digest": self.expect_sha256}
        return requested if self.pinned is None else requested | {"the pinned digest in mf.lock": self.pinned.sha256}


DEFAULT_FETCH = FetchOptions()


@dataclass(frozen=True, slots=True)
class Use:
    """The checkpoint in the cache is used; without `FetchOptions.keep` it may have been pruned."""

    stored: StoredWeights


@dataclass(frozen=True, slots=True)
class Copy:
    """A proved local file, with this digest and size, is copied to `target`, or recorded if it lies there."""

    path: Path
    sha256: str
    size_bytes: int
    target: Path


@dataclass(frozen=True, slots=True)
class Fetch:
    """The sources are tried in order, each at the address beside it."""

    sources: tuple[tuple[WeightsSource, str], ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no checkpoint and none can be fetched, for the reason in the error."""

    error: ModelError


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model's checkpoint is obtained.

    Attributes:
        variant: the model; it and the next two are what was resolved.
        settings: locate the caches and the hub.
        fetch: how it is fetched.
        step: what is done.
        refused: the local files that were tried first, and why they are not used.
    """

    variant: Variant
    settings: Settings
    fetch: FetchOptions
    step: Use | Copy | Fetch | Missing
    refused: tuple[tuple[Path, ModelError], ...]

    @property
    def cache(self) -> ModelCache:
        """The model's part of the cache."""
        return ModelCache(self.settings.cache_dir, self.variant)


def resolve(variant: Variant, settings: Settings, fetch: FetchOptions = DEFAULT_FETCH) -> Plan:
    """Return how a model's checkpoint is obtained: from the cache, from a local file, or from its sources.

    Nothing is written and nothing requested. A local file is read, and has to prove that it is the checkpoint.

    Args:
        variant: the model; not the bundled one, which has no sources.
        settings: locate the caches and the hub.
        fetch: how it is fetched.

    Raises:
        EngineError: a package that is needed to read a file cannot be loaded.
        UsageError: the origin, or MF_ENDPOINT, is not an address; or the lock file is damaged.
    """
    if not (fetch.pin and fetch.force):
        fetch = replace(fetch, pinned=read_pins(settings, may_be_missing=fetch.pin).get(variant.name))
    refused: list[tuple[Path, ModelError]] = []
    step = _find_local(ModelCache(settings.cache_dir, variant), settings, fetch, refused)
    if step is None and settings.offline:
        step = Missing(_make_offline_error(ModelCache(settings.cache_dir, variant), fetch, refused))
    return Plan(variant, settings, fetch, step or Fetch(resolve_sources(variant, settings, fetch)), tuple(refused))


def _find_local(
    cache: ModelCache, settings: Settings, fetch: FetchOptions, refused: list[tuple[Path, ModelError]]
) -> Use | Copy | Missing | None:
    """Return what is done with a file on this machine, None if there is none; append those that are refused."""
    if fetch.origin and not is_url(fetch.origin):
        try:
            return _prove(cache, Path(fetch.origin), fetch.digests)
        except ModelError as error:
            return Missing(error)
    if fetch.force or fetch.origin:
        return None
    have = cache.find()
    status = check_stored_weights(have) if have else None
    # an artifact needs only the record of its checkpoint, unless another file took the checkpoint's place
    is_usable = status is CheckpointStatus.INTACT or (status not in (None, CheckpointStatus.OTHER) and not fetch.keep)
    if not is_usable or cache.has_new_manual_file():
        for path, expected in _find_candidates(cache, settings):
            try:
                return _prove(cache, path, fetch.digests | expected)
            except ModelError as error:
                refused.append((path, error))
            if is_usable:
                break  # only the manual file, the first candidate, takes precedence
    if not have or not is_usable:
        return None
    try:
        compare_digest(str(have.path), have.sha256, fetch.digests, "fetch it again: force=True")
    except ModelError as error:
        return Missing(error)
    return Use(have)


def _find_candidates(cache: ModelCache, settings: Settings) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield files that may be a model's checkpoint with the digests that they must have.

    Those in the cache come first for each source, then those that other programs fetched from it.
    """
    for source in cache.variant.sources:
        own = cache.folder / source.file_name
        if is_file(own):
            sidecar = read_sidecar(sidecar_path(own))
            recorded = {"the recorded digest": sidecar.sha256} if sidecar and sidecar.url else {}
            yield own, _published_digest(source) | recorded
        match = _HUB_URL.fullmatch(source.url)
        if match and settings.hub_cache_dir:
            repository = "models--" + match["repository"].replace("/", "--")
            for path in list_files(settings.hub_cache_dir, f"{repository}/snapshots/*/{match['path']}"):
                blob = Path(os.path.realpath(path)).name  # Hugging Face's client names a large file by its digest
                if _SHA256.fullmatch(blob):
                    yield path, _published_digest(source) | {"the recorded digest": blob}
        if settings.torch_hub_dir and source.file_name != "model.safetensors":
            path = settings.torch_hub_dir / source.file_name
            if is_file(path):
                yield path, _published_digest(source)


def _published_digest(source: WeightsSource) -> dict[str, str]:
    return {"the published digest": source.sha256} if source.sha256 else {}


def _prove(cache: ModelCache, path: Path, expected: Mapping[str, str]) -> Copy:
    """Return the step that takes a local file, which has to be the checkpoint and to have the expected digests."""
    from mfcli.models.checkpoint import prove_checkpoint

    digest = known_sha256(path)
    compare_digest(str(path), digest, expected, "fetch the file again")
    prove_checkpoint(path, cache.variant)
    if known_sha256(path) != digest:
        raise ModelError(f"{path} changed while it was read", "run the same command again")
    return Copy(path, digest, path.stat().st_size, cache.choose_path(path.name))


def _make_offline_error(
    cache: ModelCache, fetch: FetchOptions, refused: Sequence[tuple[Path, ModelError]]
) -> ModelError:
    name = cache.variant.name
    if fetch.force or fetch.origin:
        hint = "to use a local file: origin=FILE" if fetch.origin else "to use the cached file: omit force=True"
        return ModelError(f"cannot fetch {name} while offline", hint)
    hint = f"when online: mf download {name}; or place the file at {cache.manual_path}"
    if refused:
        reasons = "; ".join(error.message for _, error in refused)
        return ModelError(f"no file on this machine has the weights of {name}: {reasons}", hint)
    return ModelError(f"the weights of {name} are not on this machine and cannot be fetched while offline", hint)


def resolve_sources(variant: Variant, settings: Settings, fetch: FetchOptions) -> tuple[tuple[WeightsSource, str], ...]:
    """Return the sources of a checkpoint in order, each with the address to request.

    Args:
        variant: the model.
        settings: has the endpoint, which replaces the Hugging Face hub's host.
        fetch: may name another origin, and has a pin, which names a commit.

    Raises:
        UsageError: one is not a web address.
    """
    sources = (WeightsSource(fetch.origin),) if fetch.origin else variant.sources
    endpoint = (settings.endpoint or HUB).rstrip("/")
    urls = [fetch.pinned.choose_revision(source.url) if fetch.pinned else source.url for source in sources]
    urls = [re.sub(rf"^{re.escape(HUB)}(?=/)", lambda _: endpoint, url) for url in urls]
    for url in urls:
        try:
            parts = urlsplit(url)
            is_web_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_web_address = False
        if not is_web_address:
            raise UsageError(f"{url!r} is not a web address", "check origin=URL and MF_ENDPOINT: https://...")
    return tuple(zip(sources, urls, strict=True))


def carry_out(plan: Plan, progress: Progress) -> StoredWeights:
    """Do what a plan says and return the checkpoint.

    Processes that have something to copy or fetch wait for the first one, and resolve again what it left to do.

    Args:
        plan: from `resolve`.
        progress: called before what takes long, and during a download.

    Raises:
        EngineError: a package that is needed to read a file cannot be loaded.
        ModelError: the checkpoint is missing and cannot be fetched, or no source has it.
        OutputError: the cache is not writable.
    """
    match plan.step:
        case Missing(error):
            raise error
        case Use(stored) if not plan.refused:
            if stored.is_here and not is_untouched(stored):
                record_identity(stored)
            return stored
    cache = plan.cache
    try:
        with lock(cache.folder / "lock", f"another process that fetches {plan.variant.name}", progress):
            return _carry_out_locked(resolve(plan.variant, plan.settings, plan.fetch), progress)
    except OutputError as error:
        have = cache.find()
        if have and not is_writable(cache.folder) and check_stored_weights(have) is CheckpointStatus.OTHER:
            raise ModelError(f"{have.path} changed since it was prepared, and {error.message}", ELSEWHERE) from error
        raise


def _carry_out_locked(plan: Plan, progress: Progress) -> StoredWeights:
    cache = plan.cache
    for path, refusal in plan.refused:
        progress(f"not used: {refusal.message}")
        if path == cache.manual_path and not plan.fetch.expect_sha256:
            cache.refuse_manual_file()
    match plan.step:
        case Use(stored):
            return stored
        case Missing(error):
            raise error
        case Copy() as step:
            stored = _copy(cache, step)
            if not plan.fetch.origin:
                progress(f"found the weights of {plan.variant.name} in {step.path}")
            return stored
        case Fetch() as step:
            return _fetch(plan, step, progress)


def _copy(cache: ModelCache, step: Copy) -> StoredWeights:
    if step.path == step.target:
        return cache.store(step.path, step.target, step.sha256)
    copy = step.target.with_name(f".{step.target.name}.{os.getpid()}")
    try:
        shutil.copyfile(step.path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        if sha256_of(copy) != step.sha256:
            raise ModelError(f"{step.path} changed while it was copied", "run the same command again")
        return cache.store(copy, step.target, step.sha256)
    except OSError as error:
        raise cache_write_error(copy.parent, error) from error
    finally:
        copy.unlink(missing_ok=True)


def request_metadata(plan: Plan, step: Fetch, progress: Progress) -> tuple[WeightsSource, "RemoteFileInfo"]:
    """Return the first source that has the file, with the server's metadata; nothing is downloaded.

    Without a network it fails at once.

    Args:
        plan: from `resolve`.
        step: its step.
        progress: called with a message before each retry.

    Raises:
        ModelError: no source has it.
    """
    return _try_sources(plan, step, progress, lambda source, download: (source, download.remote), is_patient=False)


def _fetch(plan: Plan, step: Fetch, progress: Progress) -> StoredWeights:
    def receive(source: WeightsSource, download: "Download") -> StoredWeights:
        digest = download.run(plan.cache.read_first_digest(source.url))
        target = plan.cache.choose_path(source.file_name)
        stored = plan.cache.store(download.path, target, digest, download.remote)
        plan.cache.record_first_digest(source.url, digest)
        return stored

    return _try_sources(plan, step, progress, receive)


def _try_sources(
    plan: Plan,
    step: Fetch,
    progress: Progress,
    use: "Callable[[WeightsSource, Download], _Result]",
    *,
    is_patient: bool = True,
) -> _Result:
    """Return what `use` makes of the first source that has the file; where the network fails, give up."""
    from mfcli.http import SourceError, UnreachableError, open_session
    from mfcli.hub.download import Download

    place, failures = plan.cache.manual_path, list[ModelError]()
    for source, url in step.sources:
        for failure in failures[-1:]:
            progress(failure.message)
        expected = plan.fetch.digests | _published_digest(source)
        try:
            with open_session() as session:
                root = plan.cache.root
                download = Download(session, url, plan.variant, expected, root, progress, is_patient=is_patient)
                return use(source, download)
        except UnreachableError as error:
            hint = error.hint or "run the same command again to resume"
            raise ModelError(error.message, f"{hint}; or place the file at {place}") from error
        except SourceError as error:
            failures.append(error)
    hints = list(dict.fromkeys(error.hint for error in failures if error.hint))
    if not hints or not plan.fetch.origin:
        hints.append(f"get the file elsewhere and place it at {place}")
    reasons = "; ".join(error.message for error in failures)
    raise ModelError(f"cannot fetch {plan.variant.name} from any source: {reasons}", "; or ".join(hints))

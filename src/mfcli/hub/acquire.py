"""How a row's checkpoint gets into the cache: from where it was placed, other programs' caches, or its sources.

Knows nothing of artifacts. What the cache holds already, and in which state, is stored.py's.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mfcli.errors import ModelError, OutputError, UsageError
from mfcli.files import (
    ELSEWHERE,
    cache_write_error,
    cached_sha256,
    is_file,
    is_url,
    list_files,
    lock,
    sha256_of,
    write_atomically,
)
from mfcli.hub.cache import (
    CheckpointStatus,
    StoredWeights,
    check_stored_weights,
    checkpoint_folder,
    file_identity,
    find_stored_weights,
    is_intact,
    is_writable,
    manual_path,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from mfcli.models.registry import HUB, Variant, WeightsSource
from mfcli.results import Progress
from mfcli.settings import Settings

_HUB_URL = re.compile(rf"{re.escape(HUB)}/(?P<repository>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How a checkpoint is wanted, beyond the row.

    Attributes:
        force: fetch it again although it is there.
        origin: an address or a file to take it from, instead of where the row is published.
        expect_sha256: the digest it must have.
        keep: whether the checkpoint itself must be there, not only its artifact.
    """

    force: bool = False
    origin: str | None = None
    expect_sha256: str | None = None
    keep: bool = False


DEFAULT_FETCH = FetchOptions()


Check = Callable[[Path], object]
"""Raises a ModelError for a file that is not the row's checkpoint."""


def fetch_checkpoint(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions = DEFAULT_FETCH
) -> StoredWeights:
    """Return a row's checkpoint, from the cache, from another program's cache, or downloaded and verified.

    A file whose digest nobody vouches for is kept only after `check` let it pass. Several processes that ask at once
    wait for the first.

    Raises:
        EngineError: from `check`.
        ModelError: it is not here and cannot be had: offline, no source has it, or its digest is another.
        OutputError: the cache cannot be written.
        UsageError: the fetch's origin, or the endpoint, is no address.
    """
    if ready := _ready(variant, settings, fetch):
        return ready
    folder = checkpoint_folder(variant, settings)
    try:
        with lock(folder / "lock", f"another process that fetches {variant.name}", progress):
            return _ready(variant, settings, fetch) or _obtain(variant, settings, progress, check, fetch)
    except OutputError as error:
        have = find_stored_weights(variant, settings)
        if settings.offline and not fetch.origin and next(find_candidates(variant, settings, fetch), None) is None:
            raise missing_weights_error(variant, settings, fetch) from error
        if have and not is_writable(folder) and check_stored_weights(have) is CheckpointStatus.OTHER:
            raise ModelError(
                f"{have.path} is not the file that was prepared, and {error.message}", ELSEWHERE
            ) from error
        raise


def _ready(variant: Variant, settings: Settings, fetch: FetchOptions) -> StoredWeights | None:
    """The checkpoint that is here, if it is what is wished for."""
    have = find_stored_weights(variant, settings)
    if have is None or fetch.force or fetch.origin or not is_intact(have):
        return None
    check_digest(str(have.path), have.sha256, fetch, "fetch it again: add --force")
    return have


def adopt_manual_file(variant: Variant, settings: Settings, progress: Progress, check: Check) -> None:
    """Take a file that was placed by hand beside another checkpoint of the row, if it proves right.

    One that does not is said once, and stays where it is.

    Raises:
        OutputError: the cache cannot be written.
    """
    with lock(checkpoint_folder(variant, settings) / "lock", f"another process that fetches {variant.name}", progress):
        if has_new_manual_file(variant, settings):
            candidate = next(find_candidates(variant, settings, DEFAULT_FETCH))
            try:
                _adopt(variant, settings, candidate.path, candidate.expected, check, copy=False)
            except ModelError as error:
                progress(f"not used: {error.message}")
                _refuse(candidate.path)
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")


def has_new_manual_file(variant: Variant, settings: Settings) -> bool:
    """Whether a file was placed by hand beside another checkpoint of the row, and has not been tried, but can be."""
    place = manual_path(variant, settings)
    if not is_file(place) or is_file(sidecar_path(place)) or not is_writable(place.parent):
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads(_refusal_of(place).read_bytes()) == file_identity(place.stat()):
            return False
    return find_stored_weights(variant, settings) is not None


def _refusal_of(place: Path) -> Path:
    return place.with_name("refused.json")


def _refuse(place: Path) -> None:
    with contextlib.suppress(OSError):
        write_atomically(_refusal_of(place), json.dumps(file_identity(place.stat())).encode())


def check_digest(what: str, sha256: str, fetch: FetchOptions, hint: str = "it is another file: see --from") -> None:
    """Compare the digest of a file, or of what an address serves, with the one that is wished for.

    Raises:
        ModelError: it is another.
    """
    _compare(what, sha256, _expected(fetch), hint)


def _compare(what: str, sha256: str, expected: Mapping[str, str], hint: str) -> None:
    for origin, value in expected.items():
        if value.lower() != sha256:
            raise ModelError(f"{what} has SHA-256 {sha256}, but {origin} says {value.lower()}", hint)


def _obtain(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions
) -> StoredWeights:
    if fetch.origin and not is_url(fetch.origin):
        return _adopt(variant, settings, Path(fetch.origin), _expected(fetch), check, copy=True)
    unfit: list[str] = []
    if not fetch.force and not fetch.origin:
        for candidate in find_candidates(variant, settings, fetch):
            try:
                found = _adopt(
                    variant, settings, candidate.path, candidate.expected, check, copy=candidate.is_elsewhere
                )
            except ModelError as error:
                unfit.append(error.message)
                progress(f"not used: {error.message}")
                if candidate.path == manual_path(variant, settings):
                    _refuse(candidate.path)
            else:
                progress(f"found the weights of {variant.name} in {candidate.path}")
                return found
    if settings.offline:
        raise missing_weights_error(variant, settings, fetch, unfit)
    return _first_that_delivers(variant, settings, progress, check, fetch)


def missing_weights_error(
    variant: Variant, settings: Settings, fetch: FetchOptions, unfit: Sequence[str] = ()
) -> ModelError:
    """Return the error of a checkpoint that is not here, or only in files that are another, and may not be fetched."""
    if fetch.force or fetch.origin:
        option = "--from takes a file" if fetch.origin else "without --force, what is here counts"
        return ModelError(f"offline nothing is fetched: {variant.name} stays as it is", option)
    place = manual_path(variant, settings)
    if unfit:
        return ModelError(
            f"what is on this machine is not the weights of {variant.name}: {'; '.join(unfit)}",
            f"with a network: mf download {variant.name}; or place the right file at {place}",
        )
    return ModelError(
        f"the weights of {variant.name} are not on this machine, and offline none are fetched",
        f"with a network: mf download {variant.name}; or place the file at {place}",
    )


def resolve_sources(variant: Variant, settings: Settings, fetch: FetchOptions) -> list[tuple[WeightsSource, str]]:
    """Return where a checkpoint is fetched from, in order, each with the address that is really asked.

    Raises:
        UsageError: an address is none.
    """
    sources = (WeightsSource(fetch.origin),) if fetch.origin else variant.sources
    addressed = [(source, apply_endpoint(source.url, settings)) for source in sources]
    for _, url in addressed:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{url!r} is not a web address", "it begins with https://; see --from and MF_ENDPOINT")
    return addressed


def _first_that_delivers(
    variant: Variant, settings: Settings, progress: Progress, check: Check, fetch: FetchOptions
) -> StoredWeights:
    from mfcli.http import SourceError, UnreachableError

    failures: list[SourceError] = []
    sources = resolve_sources(variant, settings, fetch)
    for source, url in sources:
        try:
            return _download(variant, source, url, settings, progress, check, fetch)
        except UnreachableError as error:
            place = manual_path(variant, settings)
            hint = f"the same command again goes on where it stopped; without a network, place the file at {place}"
            raise ModelError(error.message, error.hint or hint) from error
        except SourceError as error:
            failures.append(error)
            if len(sources) > 1:
                progress(error.message)
    hints = dict.fromkeys(error.hint for error in failures if error.hint)
    raise ModelError(
        f"no source delivers {variant.name}: {'; '.join(error.message for error in failures)}",
        "; ".join(hints) or f"carry the file by hand: mf download {variant.name} --from FILE",
    )


def _expected(fetch: FetchOptions, **others: str | None) -> dict[str, str]:
    return {
        origin: digest
        for origin, digest in {"--expect-sha256": fetch.expect_sha256, **others}.items()
        if digest is not None
    }


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

    expected = _expected(fetch, **{"this release": source.sha256})
    fetched = download_file(
        url,
        settings.cache_dir / "partial",
        expected_sha256=expected,
        first_sha256=_first_digests(variant, settings).get(_name_of(source.url)),
        max_bytes=max_checkpoint_bytes(variant),
        name=variant.name,
        progress=progress,
    )
    if fetch.origin or not (expected or fetched.remote.sha256):  # nobody vouches for it
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
    kept = _keep(_place(variant, settings, source.file_name), fetched.path.replace, fields)
    _remember_first(variant, settings, _name_of(source.url), fetched.sha256)
    return kept


def _place(variant: Variant, settings: Settings, file_name: str) -> Path:
    """Where a checkpoint goes: a name of the row's own, whatever the file was called."""
    own = {source.file_name for source in variant.sources}
    if file_name not in own:
        file_name = "model.safetensors" if file_name.endswith(".safetensors") else f"{variant.name}.pth"
    return checkpoint_folder(variant, settings) / file_name


def _name_of(url: str) -> str:
    """What tells an address from others, without its secrets: its query, which may be one, as a digest."""
    from mfcli.http import redact_url

    query = url.partition("?")[2]
    return f"{redact_url(url)}?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else redact_url(url)


def _first_digests(variant: Variant, settings: Settings) -> dict[str, str]:
    """The digest of what first came from each source; it counts where nobody else vouches for a file."""
    try:
        known = json.loads(_first_digests_file(variant, settings).read_bytes())
        return {url: digest for url, digest in known.items() if isinstance(digest, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember_first(variant: Variant, settings: Settings, address: str, digest: str) -> None:
    known = _first_digests(variant, settings) | {address: digest}
    path = _first_digests_file(variant, settings)
    try:
        write_atomically(path, json.dumps(known).encode())
    except OSError as error:
        raise cache_write_error(path.parent, error) from error


def _first_digests_file(variant: Variant, settings: Settings) -> Path:
    return settings.cache_dir / "known" / f"{variant.name}.json"


def apply_endpoint(url: str, settings: Settings) -> str:
    """Return an address on the hub with the endpoint that is set in the hub's place; others stay."""
    if settings.endpoint and url.startswith(f"{HUB}/"):
        return settings.endpoint.rstrip("/") + url.removeprefix(HUB)
    return url


def max_checkpoint_bytes(variant: Variant) -> int:
    """Return a size that no checkpoint of a row reaches: four times its parameters in float32, for trainers' states."""
    return 16 * variant.params + (1 << 24)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of this machine that may be a row's checkpoint, with the digests it must have, by a word for each."""

    path: Path
    expected: dict[str, str]
    is_elsewhere: bool


def find_candidates(variant: Variant, settings: Settings, fetch: FetchOptions) -> Iterator[Candidate]:
    """What was placed by hand, and what the caches of Hugging Face's client and torch.hub hold."""
    for source in variant.sources:
        by_hand = checkpoint_folder(variant, settings) / source.file_name
        for path, digest in (*_placed(by_hand), *_in_other_caches(source, settings)):
            expected = _expected(fetch, **{"this release": source.sha256, "the note beside it": digest})
            yield Candidate(path, expected, is_elsewhere=path != by_hand)


def _placed(path: Path) -> list[tuple[Path, str | None]]:
    """A checkpoint in its place, with the digest it had if it was downloaded; one placed by hand may be another now."""
    sidecar = read_sidecar(sidecar_path(path))
    return [(path, sidecar.sha256 if sidecar and sidecar.url else None)] if is_file(path) else []


def _in_other_caches(source: WeightsSource, settings: Settings) -> Iterator[tuple[Path, str | None]]:
    """Files that other programs fetched from a source, with the digest that they keep with it."""
    match = _HUB_URL.fullmatch(source.url)
    if match and settings.hub_cache_dir:
        repository = "models--" + match["repository"].replace("/", "--")
        for path in list_files(settings.hub_cache_dir, f"{repository}/snapshots/*/{match['path']}"):
            blob = Path(os.path.realpath(path)).name  # the hub's client names a large file by its digest
            if _SHA256.fullmatch(blob):
                yield path, blob
    if settings.torch_hub_dir and source.file_name != "model.safetensors":
        path = settings.torch_hub_dir / source.file_name
        if is_file(path):
            yield path, None


def _adopt(
    variant: Variant, settings: Settings, path: Path, expected: Mapping[str, str], check: Check, *, copy: bool
) -> StoredWeights:
    """Take a file of this machine for a row's checkpoint, after its digest was compared and it was tried."""
    digest = cached_sha256(path, settings.cache_dir / "digests")
    _compare(str(path), digest, expected, "it is another file: fetch it again")
    check(path)
    if cached_sha256(path, settings.cache_dir / "digests") != digest:  # the check takes seconds
        raise ModelError(f"{path} changed while it was prepared", "run the same command again")
    fields = {"url": None, "etag": None, "commit": None, "sha256": digest}
    if not copy:
        return _keep(path, lambda _: None, fields)

    def bring(target: Path) -> None:
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(path, partial)
            with partial.open("rb") as copied:
                os.fsync(copied.fileno())
            if sha256_of(partial) != digest:
                raise ModelError(f"{path} changed while it was copied", "run the same command again")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    return _keep(_place(variant, settings, path.name), bring, fields)


def _keep(target: Path, bring: Callable[[Path], object], fields: dict[str, Any]) -> StoredWeights:
    """Bring a verified checkpoint to its place, write its sidecar, and drop those that it replaces."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar_file = sidecar_path(target)
        sidecar_file.unlink(missing_ok=True)  # never the old digest beside the new file
        bring(target)
        status = target.stat()
        kept = StoredWeights(
            path=target,
            size_bytes=status.st_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            identity=file_identity(status),
            **fields,
        )
        write_sidecar(kept)
        _drop_others(target)
    except OSError as error:
        raise cache_write_error(target.parent, error) from error
    return kept


def _drop_others(kept: Path) -> None:
    """Delete the row's other checkpoints and what a copy left that was killed; a file that was never one stays."""
    left = list_files(kept.parent, ".*")
    for sidecar in list_files(kept.parent, "*.json"):
        if sidecar != sidecar_path(kept) and read_sidecar(sidecar) is not None:
            left += [sidecar.with_suffix(""), sidecar]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()

"""Maintain the cache: list its files, verify them, and delete those that are not needed."""

import contextlib
import fnmatch
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mfcli.artifact.build import compare_artifact, require_comparison
from mfcli.artifact.file import artifact_key, find_artifact, open_artifact, read_origins
from mfcli.errors import ModelError, OutputError
from mfcli.files import ELSEWHERE, cache_delete_error, exists, is_glob, list_files, read_json, sha256_of
from mfcli.hub.cache import (
    is_intact,
    is_untouched,
    list_artifacts,
    list_checkpoints,
    list_partial_downloads,
    read_sidecar,
    sidecar_path,
)
from mfcli.models.registry import VARIANTS, Variant, find_variant
from mfcli.settings import Settings


class Kind(StrEnum):
    """What a file of the cache is."""

    CHECKPOINT = "checkpoint"
    ARTIFACT = "artifact"
    FEATURES = "features"
    PARTIAL = "partial"
    OTHER = "other"


_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?")
_IN_USE_S = 3600.0
"""A file that changed within this time may be in use by another process."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache, together with its sidecar.

    Attributes:
        kind: what it is.
        model: the model that it belongs to, None if unknown.
        path: the file.
        size_bytes: size of the file.
        sha256: the recorded digest, None if there is none.
        origins: the files or addresses that its weights came from; several with the same weights share an artifact.
        date: when it was stored or built, ISO 8601 in UTC, None if unknown.
    """

    kind: Kind
    model: str | None
    path: Path
    size_bytes: int
    sha256: str | None
    origins: tuple[str, ...] = ()
    date: str | None = None


def list_entries(settings: Settings) -> list[CacheEntry]:
    """Return the checkpoints, artifacts, features and partial downloads of the cache, sorted by kind and name.

    Raises:
        OutputError: the cache exists and cannot be read.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            list(settings.cache_dir.iterdir())
    except OSError as error:
        raise OutputError(f"cannot read the cache {settings.cache_dir}: {error.strerror}", ELSEWHERE) from error
    found = (_find_checkpoints, _find_artifacts, _find_features, _find_partial_files)
    return [entry for find in found for entry in find(settings)]


def _find_checkpoints(settings: Settings) -> Iterator[CacheEntry]:
    for path in list_checkpoints(settings):
        known = read_sidecar(sidecar_path(path))
        entry = CacheEntry(Kind.CHECKPOINT, path.parent.name, path, _get_size(path), None)
        origins = (known.url,) if known and known.url else ()
        yield replace(entry, sha256=known.sha256, origins=origins, date=known.date) if known else entry


def _find_artifacts(settings: Settings) -> Iterator[CacheEntry]:
    for name, path in list_artifacts(settings):
        digest = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            digest = read_json(path.with_suffix(".json"))["sha256"]
        origins = read_origins(path).values()
        date = min((str(o.get("date")) for o in origins), default=None)
        names = tuple(str(o.get("origin")) for o in origins)
        yield CacheEntry(Kind.ARTIFACT, name, path, _get_size(path), digest, names, date)


def _find_features(settings: Settings) -> Iterator[CacheEntry]:
    """Yield what `mf train` keeps of pictures."""
    for path in list_files(settings.cache_dir / "features", "*.bin"):
        yield CacheEntry(Kind.FEATURES, path.stem.rpartition("-")[0], path, _get_size(path), None)


def _find_partial_files(settings: Settings) -> Iterator[CacheEntry]:
    for path in list_partial_downloads(settings):
        yield CacheEntry(Kind.PARTIAL, None, path, _get_size(path), None)


def _get_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class FileStatus(StrEnum):
    """The result of verifying a file.

    NEW is a checkpoint that the user placed, and that is not used yet: the next prediction uses it if it fits. STALE is
    an intact artifact of another version, or of an unknown model: it is not used.
    """

    GOOD = "good"
    NEW = "new"
    STALE = "stale"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """The result of verifying one file.

    Attributes:
        entry: the file.
        status: the result.
        problem: why it is bad, None if it is not.
        difference: the largest difference of an artifact's logits from torch's, in units of their standard deviation;
            None if they were not compared.
    """

    entry: CacheEntry
    status: FileStatus
    problem: str | None = None
    difference: float | None = None


def verify(settings: Settings, against_torch: bool = False) -> Iterator[VerifiedFile]:
    """Compute the digest of every checkpoint and artifact and yield the results.

    Args:
        settings: locate the cache.
        against_torch: also compare each intact artifact with torch, if its checkpoint is in the cache.

    Raises:
        EngineError: torch or timm cannot be loaded.
    """
    if against_torch:
        require_comparison()
    for entry in list_entries(settings):
        if entry.kind in (Kind.CHECKPOINT, Kind.ARTIFACT):  # features have checksums of their own
            found = _verify_entry(entry)
            yield _compare_artifact(found, settings) if against_torch else found


def _compare_artifact(found: VerifiedFile, settings: Settings) -> VerifiedFile:
    if found.entry.kind is not Kind.ARTIFACT or found.status is not FileStatus.GOOD:
        return found
    variant = find_variant(found.entry.model or "")
    try:
        artifact = open_artifact(found.entry.path, variant, None, None)
        checkpoint = _find_intact_checkpoint(variant, artifact.weights_sha256, settings)
        differences = compare_artifact(artifact, checkpoint, variant) if checkpoint else {}
    except ModelError as error:
        return replace(found, status=FileStatus.BAD, problem=error.message)
    return replace(found, difference=max(differences.values(), default=None))


def _find_intact_checkpoint(variant: Variant, sha256: str, settings: Settings) -> Path | None:
    records = [
        read_sidecar(sidecar_path(entry.path)) for entry in _find_checkpoints(settings) if entry.sha256 == sha256
    ]
    fitting = (known.path for known in records if known and known.path.parent.name == variant.name and is_intact(known))
    return next(fitting, None)


def _verify_entry(entry: CacheEntry) -> VerifiedFile:
    is_new = entry.kind is Kind.CHECKPOINT and _is_new(entry.path)
    if entry.sha256 is None and not is_new:
        return VerifiedFile(entry, FileStatus.BAD, "no digest is recorded for it")
    try:
        digest = sha256_of(entry.path)
    except ModelError as error:
        return VerifiedFile(entry, FileStatus.BAD, error.message)
    if digest == entry.sha256:
        return VerifiedFile(entry, FileStatus.STALE if _is_stale(entry) else FileStatus.GOOD)
    if is_new:
        return VerifiedFile(entry, FileStatus.NEW)
    return VerifiedFile(entry, FileStatus.BAD, f"its SHA-256 is {digest} instead of {entry.sha256}")


def _is_new(path: Path) -> bool:
    """Whether the user placed a checkpoint, alone or in the place of another local file, that is not used yet."""
    sidecar = sidecar_path(path)
    known = read_sidecar(sidecar)
    return (known.url is None and not is_untouched(known)) if known else not exists(sidecar)


def match_entries(settings: Settings, names: list[str]) -> list[CacheEntry]:
    """Return all files of the models that names and globs match, records of deleted checkpoints included.

    A path names a single file of the cache, or the artifact of a checkpoint file.

    Raises:
        ModelError: a name is unknown, or a glob matches neither a model nor a file in the cache.
    """
    found = [e for e in (*list_entries(settings), *_find_records(settings)) if e.model]
    unknown = {e.model for e in found if e.model} - VARIANTS.keys()
    wanted: set[str] = set()
    paths: set[Path] = set()
    for name in names:
        real = os.path.realpath(name)
        if own := {e.path for e in found if real in (os.path.realpath(e.path), *e.origins)}:
            paths |= own
            continue
        if is_glob(name):
            matched = {v.name for v in VARIANTS.values() if v.matches(name)}
            matched |= set(fnmatch.filter(unknown, name.lower()))
        else:
            matched = {find_variant(name).name}
        if not matched:
            raise ModelError(f"no model matches {name!r}", "see mf cache ls")
        wanted |= matched
    return [e for e in found if e.model in wanted or e.path in paths]


def _find_records(settings: Settings) -> Iterator[CacheEntry]:
    """Yield the sidecars of checkpoints that are gone, and the digests of first downloads."""
    for path in list_files(settings.cache_dir / "checkpoints", "*/*.json"):
        if not exists(path.with_suffix("")):
            yield CacheEntry(Kind.OTHER, path.parent.name, path, _get_size(path), None)
    for path in list_files(settings.cache_dir / "known", "*.json"):
        yield CacheEntry(Kind.OTHER, path.stem, path, _get_size(path), None)


def find_prunable(settings: Settings, checkpoints: bool) -> list[CacheEntry]:
    """Return files that are not needed: partial downloads, stale and damaged artifacts, temporary files.

    Those that changed within the last hour are kept, because another process may be using them.

    Args:
        settings: locate the cache.
        checkpoints: also return checkpoints with a valid artifact; the torch engine, another input size, or a
            later format of artifacts will have to fetch them again.
    """
    found = [e for e in list_entries(settings) if (e.kind is Kind.PARTIAL or _is_stale(e)) and _is_old(e.path)]
    found += _find_temporary_files(settings)
    if checkpoints:
        found += [entry for entry in _find_checkpoints(settings) if _has_valid_artifact(entry, settings)]
    return found


def _is_stale(entry: CacheEntry) -> bool:
    """Whether an artifact will never be opened again: of an unknown model, of another format, or damaged."""
    if entry.kind is not Kind.ARTIFACT:
        return False
    variant = VARIANTS.get(entry.model or "")
    if variant is None:
        return True
    try:
        artifact = open_artifact(entry.path, variant, None, None)
    except ModelError:
        return True
    return artifact.key != artifact_key(variant.with_input_size(*artifact.plan.crop_size), artifact.weights_sha256)


def _find_temporary_files(settings: Settings) -> list[CacheEntry]:
    """Return the temporary files of killed processes: in the cache's own folders, under names of write_atomically."""
    folders = ("artifacts", "known", "digests", "partial", "checkpoints/*")
    hidden = [path for folder in folders for path in list_files(settings.cache_dir, f"{folder}/.*")]
    paths = [path for path in hidden if _TEMPORARY.fullmatch(path.name) and _is_old(path)]
    return [CacheEntry(Kind.OTHER, None, path, _get_size(path), None) for path in paths]


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _IN_USE_S
    except OSError:
        return False


def _has_valid_artifact(entry: CacheEntry, settings: Settings) -> bool:
    variant = VARIANTS.get(entry.model or "")
    if variant is None or entry.sha256 is None:
        return False
    known = read_sidecar(sidecar_path(entry.path))
    if known and known.url is None and not is_intact(known):
        return False  # replaced by the user since; the artifact is that of the previous file
    try:
        find_artifact(variant, entry.sha256, None, settings)
    except ModelError:
        return False
    return True


def remove(found: list[CacheEntry], *, keep_sidecars: bool = False) -> tuple[list[CacheEntry], OutputError | None]:
    """Delete entries; one that cannot be deleted does not stop the others.

    Args:
        found: the entries.
        keep_sidecars: keep those of checkpoints, by which their artifacts are found.

    Returns:
        The deleted entries, and the first error.
    """
    deleted: list[CacheEntry] = []
    problem: OutputError | None = None
    for entry in found:
        paths = [entry.path]  # not its lock: another process may hold it
        if entry.kind in (Kind.ARTIFACT, Kind.PARTIAL):
            paths.append(entry.path.with_suffix(".json"))
        if entry.kind is Kind.CHECKPOINT and not keep_sidecars:
            paths.append(sidecar_path(entry.path))
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            problem = problem or cache_delete_error(path, error)
        else:
            deleted.append(entry)
    return deleted, problem

"""Look after the cache: what is in it, whether it is whole, and what can go."""

import contextlib
import fnmatch
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mfcli.artifact.file import artifact_key, artifact_path, open_artifact
from mfcli.errors import ModelError, OutputError
from mfcli.files import ELSEWHERE, cache_delete_error, exists, is_folder, is_glob, list_files, sha256_of
from mfcli.hub.cache import is_intact, is_untouched, list_artifacts, list_checkpoints, read_sidecar, sidecar_path
from mfcli.models.registry import VARIANTS, find_variant
from mfcli.settings import Settings


class Kind(StrEnum):
    """What a file of the cache is."""

    CHECKPOINT = "checkpoint"
    ARTIFACT = "artifact"
    PARTIAL = "partial"
    OTHER = "other"


_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?")
_AT_WORK_S = 3600.0


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache, its sidecar counted with it.

    Attributes:
        kind: what it is.
        model: the row it belongs to, None where that is not known.
        path: the file.
        size_bytes: of the file.
        sha256: the digest it had when it arrived or was made, None where nothing remembers one.
    """

    kind: Kind
    model: str | None
    path: Path
    size_bytes: int
    sha256: str | None


def list_entries(settings: Settings) -> list[CacheEntry]:
    """Return the checkpoints, artifacts and partial downloads of the cache, by kind and name.

    Raises:
        OutputError: the cache is there and cannot be read.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            list(settings.cache_dir.iterdir())
    except OSError as error:
        raise OutputError(f"cannot read the cache {settings.cache_dir}: {error.strerror}", ELSEWHERE) from error
    return [*_checkpoints(settings), *_artifacts(settings), *_partials(settings)]


def _checkpoints(settings: Settings) -> Iterator[CacheEntry]:
    for path in list_checkpoints(settings):
        known = read_sidecar(sidecar_path(path))
        yield CacheEntry(Kind.CHECKPOINT, path.parent.name, path, _size(path), known.sha256 if known else None)


def _artifacts(settings: Settings) -> Iterator[CacheEntry]:
    for name, path in list_artifacts(settings):
        digest = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            digest = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
        yield CacheEntry(Kind.ARTIFACT, name, path, _size(path), digest)


def _partials(settings: Settings) -> Iterator[CacheEntry]:
    for path in _files(list_files(settings.cache_dir / "partial", "*.part")):
        yield CacheEntry(Kind.PARTIAL, None, path, _size(path), None)


def _files(found: Iterable[Path]) -> list[Path]:
    """What is no folder; links that lead nowhere too."""
    return [path for path in found if not is_folder(path)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class Verdict(StrEnum):
    """What a look at a file's bytes found.

    NEW was placed by hand and not used yet, where nothing was or where another such file was: the next prediction takes
    it, if it proves right. STALE is an artifact that is whole and of another version, or of no row: it is not used.
    """

    GOOD = "good"
    NEW = "new"
    STALE = "stale"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one file.

    Attributes:
        entry: the file.
        status: how it is.
        problem: what is wrong with one that is bad, else None.
    """

    entry: CacheEntry
    status: Verdict
    problem: str | None = None


def verify(settings: Settings) -> Iterator[Verified]:
    """Yield every checkpoint and artifact with what is wrong with it, after its full digest was computed."""
    for entry in list_entries(settings):
        if entry.kind is not Kind.PARTIAL:
            yield _verified(entry)


def _verified(entry: CacheEntry) -> Verified:
    is_new = entry.kind is Kind.CHECKPOINT and _is_new(entry.path)
    if entry.sha256 is None and not is_new:
        return Verified(entry, Verdict.BAD, "no digest is known of it")
    try:
        digest = sha256_of(entry.path)
    except ModelError as error:
        return Verified(entry, Verdict.BAD, error.message)
    if digest == entry.sha256:
        return Verified(entry, Verdict.STALE if _is_stale(entry) else Verdict.GOOD)
    if is_new:
        return Verified(entry, Verdict.NEW)
    return Verified(entry, Verdict.BAD, f"its SHA-256 is {digest} instead of {entry.sha256}")


def _is_new(path: Path) -> bool:
    """Whether a checkpoint was placed by hand since the last use, where nothing was or another one placed by hand."""
    sidecar = sidecar_path(path)
    known = read_sidecar(sidecar)
    return (known.url is None and not is_untouched(known)) if known else not exists(sidecar)


def match_entries(settings: Settings, names: list[str]) -> list[CacheEntry]:
    """Return the checkpoints and artifacts of the models that names and globs mean, and all that is known of them.

    Raises:
        ModelError: a name is unknown, or a glob is of no model and of nothing in the cache.
    """
    found = [e for e in (*list_entries(settings), *_knowledge(settings)) if e.model]
    strange = {e.model for e in found if e.model} - VARIANTS.keys()
    wanted: set[str] = set()
    for name in names:
        if is_glob(name):
            rows = {v.name for v in VARIANTS.values() if v.matches(name)}
            meant = rows | set(fnmatch.filter(strange, name.lower()))
        else:
            meant = {find_variant(name).name}
        if not meant:
            raise ModelError(f"no model matches {name!r}", "what is there: mf cache ls")
        wanted |= meant
    return [e for e in found if e.model in wanted]


def _knowledge(settings: Settings) -> Iterator[CacheEntry]:
    """Sidecars of checkpoints that are gone, and the digests of first downloads."""
    for path in _files(list_files(settings.cache_dir / "checkpoints", "*/*.json")):
        if not exists(path.with_suffix("")):
            yield CacheEntry(Kind.OTHER, path.parent.name, path, _size(path), None)
    for path in _files(list_files(settings.cache_dir / "known", "*.json")):
        yield CacheEntry(Kind.OTHER, path.stem, path, _size(path), None)


def find_prunable(settings: Settings, checkpoints: bool) -> list[CacheEntry]:
    """Return what can go without a loss that matters: partial downloads, stale and damaged artifacts, left-overs.

    Of these, what changed within the last hour stays, because another process may be at work on it.

    Args:
        settings: say where the cache is.
        checkpoints: also the checkpoints whose artifact is good; the torch engine, or a later version of artifacts,
            has to fetch those again.
    """
    found = [e for e in list_entries(settings) if (e.kind is Kind.PARTIAL or _is_stale(e)) and _is_old(e.path)]
    found += _left_overs(settings)
    if checkpoints:
        found += [entry for entry in _checkpoints(settings) if _has_good_artifact(entry, settings)]
    return found


def _is_stale(entry: CacheEntry) -> bool:
    """Whether an artifact would never be opened again: of an unknown row, of another format, damaged."""
    if entry.kind is not Kind.ARTIFACT:
        return False
    variant = VARIANTS.get(entry.model or "")
    if variant is None:
        return True
    try:
        artifact = open_artifact(entry.path, variant, None, None)
    except ModelError:
        return True
    return artifact.key != artifact_key(variant, artifact.weights_sha256)


def _left_overs(settings: Settings) -> list[CacheEntry]:
    """Temporary files of processes that were killed: in the cache's own folders, under the program's own names."""
    folders = [settings.cache_dir / name for name in ("artifacts", "known", "digests", "partial")]
    folders += list_files(settings.cache_dir / "checkpoints", "*/")
    paths = [path for folder in folders for path in _files(list_files(folder, ".*")) if _TEMPORARY.fullmatch(path.name)]
    return [CacheEntry(Kind.OTHER, None, path, _size(path), None) for path in paths if _is_old(path)]


def _is_old(path: Path) -> bool:
    """Whether nobody can be at work on a file any more: it has not changed for an hour."""
    try:
        return time.time() - path.stat().st_mtime > _AT_WORK_S
    except OSError:
        return False


def _has_good_artifact(entry: CacheEntry, settings: Settings) -> bool:
    variant = VARIANTS.get(entry.model or "")
    if variant is None or entry.sha256 is None:
        return False
    known = read_sidecar(sidecar_path(entry.path))
    if known and known.url is None and not is_intact(known):
        return False  # placed by hand since; the artifact is of the file that was there before
    try:
        key = artifact_key(variant, entry.sha256)
        open_artifact(artifact_path(variant, entry.sha256, settings), variant, key, None)
    except ModelError:
        return False
    return True


def remove(found: list[CacheEntry], *, keep_sidecars: bool = False) -> tuple[list[CacheEntry], OutputError | None]:
    """Delete entries; with keep_sidecars, what is known of a checkpoint stays, so that its artifact is found.

    Returns what is gone, and the first error: one entry that cannot be deleted does not stop the others.
    """
    gone: list[CacheEntry] = []
    problem: OutputError | None = None
    for entry in found:
        paths = [entry.path]  # never a lock: another process may hold it
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
            gone.append(entry)
    return gone, problem

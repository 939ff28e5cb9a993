"""The checkpoints in the cache: where they are, what is recorded of them, and whether they are intact.

A model's checkpoint is `checkpoints/<model>/<file>`, with a JSON sidecar that records its digest and its origin; the
sidecar stays when the checkpoint is pruned. Where a checkpoint is taken from is the business of acquire.py.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from mfcli.errors import ModelError
from mfcli.files import cache_write_error, is_file, known_sha256, list_files, read_json, write_atomically
from mfcli.models.registry import Variant
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.http import RemoteFileInfo


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What the sidecar of a model's checkpoint records.

    Attributes:
        path: the checkpoint, which may have been pruned.
        sha256: its digest.
        size_bytes: its size.
        url: where it was downloaded from; None for a local file.
        etag: the server's entity tag.
        commit: the commit on the Hugging Face hub.
        date: when it was stored, ISO 8601 in UTC.
        identity: `file_identity` of the file when its digest was last verified; empty if unknown.
    """

    path: Path
    sha256: str
    size_bytes: int
    url: str | None
    etag: str | None
    commit: str | None
    date: str
    identity: Sequence[int] = ()

    @property
    def is_here(self) -> bool:
        """Whether there is a file of the recorded size; `is_intact` also compares its digest."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.size_bytes
        return False


@dataclass(frozen=True, slots=True)
class ModelCache:
    """The part of the cache that belongs to one model's published checkpoint.

    Attributes:
        root: the cache directory.
        variant: the model.
    """

    root: Path
    variant: Variant

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint."""
        return self.root / "checkpoints" / self.variant.name

    @property
    def manual_path(self) -> Path:
        """Where the user may place the checkpoint."""
        return self.folder / self.variant.sources[0].file_name

    def find(self) -> StoredWeights | None:
        """Return what is recorded of the checkpoint, None if nothing; one that is not pruned takes precedence."""
        known = [read_sidecar(path) for path in list_files(self.folder, "*.json")]
        return max((k for k in known if k), key=lambda k: (k.is_here, k.date), default=None)

    def choose_path(self, file_name: str) -> Path:
        """Return where a file is kept: under one of the model's own file names, whatever it was called before."""
        if file_name not in {source.file_name for source in self.variant.sources}:
            file_name = "model.safetensors" if file_name.endswith(".safetensors") else f"{self.variant.name}.pth"
        return self.folder / file_name

    def has_new_manual_file(self) -> bool:
        """Return whether there is a file at `manual_path` that can be tried, and was not yet, beside a record."""
        place = self.manual_path
        if not is_file(place) or is_file(sidecar_path(place)) or not is_writable(place.parent):
            return False
        with contextlib.suppress(OSError, ValueError):
            return bool(read_json(self._refusal) != file_identity(place.stat()))
        return True

    def refuse_manual_file(self) -> None:
        """Record that the file at `manual_path` is not the checkpoint, so that it is reported once."""
        with contextlib.suppress(OSError):
            write_atomically(self._refusal, json.dumps(file_identity(self.manual_path.stat())).encode())

    @property
    def _refusal(self) -> Path:
        return self.folder / "refused.json"

    def read_first_digest(self, url: str) -> str | None:
        """Return the digest of the first download from an address, before MF_ENDPOINT is applied; None if unknown."""
        return self._read_first_digests().get(_remove_secrets(url))

    def record_first_digest(self, url: str, sha256: str) -> None:
        """Record the digest of a download that was accepted.

        Raises:
            OutputError: the cache is not writable.
        """
        digests = self._read_first_digests() | {_remove_secrets(url): sha256}
        try:
            write_atomically(self._first_digests, json.dumps(digests).encode())
        except OSError as error:
            raise cache_write_error(self._first_digests.parent, error) from error

    @property
    def _first_digests(self) -> Path:
        return self.root / "known" / f"{self.variant.name}.json"

    def _read_first_digests(self) -> dict[str, str]:
        try:
            known = read_json(self._first_digests)
            return {url: digest for url, digest in known.items() if isinstance(digest, str)}
        except (OSError, ValueError, AttributeError):
            return {}

    def store(self, file: Path, target: Path, sha256: str, remote: "RemoteFileInfo | None" = None) -> StoredWeights:
        """Move a verified checkpoint to its place, write its sidecar, and delete the checkpoints that it replaces.

        Args:
            file: the checkpoint, on the file system of the cache.
            target: its place, see `choose_path`; it may lie there already.
            sha256: its digest.
            remote: where it was downloaded from; None for a local file.

        Raises:
            OutputError: the cache is not writable.
        """
        try:
            sidecar_path(target).unlink(missing_ok=True)  # the old digest must never lie beside the new file
            file.replace(target)
            status = target.stat()
            kept = StoredWeights(
                path=target,
                sha256=sha256,
                size_bytes=status.st_size,
                url=_redact(remote.url) if remote else None,
                etag=remote.etag if remote else None,
                commit=remote.commit if remote else None,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
                identity=file_identity(status),
            )
            _write_sidecar(kept)
            _delete_others(target)
        except OSError as error:
            raise cache_write_error(target.parent, error) from error
        return kept


def _redact(url: str) -> str:
    from mfcli.http import redact_url

    return redact_url(url)


def _remove_secrets(url: str) -> str:
    """Return an address without its secrets; its query, which may hold one, as a digest."""
    query = url.partition("?")[2]
    return f"{_redact(url)}?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else _redact(url)


def compare_digest(what: str, sha256: str, expected: Mapping[str, str], hint: str | None = None) -> None:
    """Compare a digest with those that are expected.

    Args:
        what: the file that has the digest.
        sha256: the digest.
        expected: digests, each under the words that an error calls it by.
        hint: the error's hint.

    Raises:
        ModelError: they differ.
    """
    for label, value in expected.items():
        if value.lower() != sha256:
            raise ModelError(f"{what} has SHA-256 {sha256}, but {label} is {value.lower()}", hint)


def list_checkpoints(settings: Settings) -> list[Path]:
    """Return the checkpoints in the cache; the parent folder of each is named after its model."""
    found = list_files(settings.cache_dir / "checkpoints", "*/*")
    return [path for path in found if path.suffix != ".json" and path.name != "lock" and path.name[0] != "."]


def list_partial_downloads(settings: Settings) -> list[Path]:
    """Return the partial downloads in the cache; the same download goes on with one."""
    return list_files(settings.cache_dir / "partial", "*.part")


def list_artifacts(settings: Settings) -> list[tuple[str, Path]]:
    """Return the artifacts in the cache, valid or not, each with the name of its model."""
    found = list_files(settings.cache_dir / "artifacts", "*.onnx")
    return [(path.stem.rpartition("-")[0], path) for path in found if path.name[0] != "."]


def sidecar_path(path: Path) -> Path:
    """Return the sidecar of a checkpoint."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> StoredWeights | None:
    """Read a sidecar; None if it is missing or damaged."""
    try:
        known = read_json(path)
        found = {name: known[name] for name in _SIDECAR_FIELDS if name in known}  # other versions have other fields
        return StoredWeights(path=path.with_suffix(""), **found | {"identity": list(known.get("identity") or ())})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_SIDECAR_FIELDS = tuple(field.name for field in fields(StoredWeights) if field.name != "path")


def _write_sidecar(kept: StoredWeights) -> None:
    sidecar = {name: value for name, value in asdict(kept).items() if name != "path"}
    write_atomically(sidecar_path(kept.path), json.dumps(sidecar).encode())


def is_writable(folder: Path) -> bool:
    """Return whether files can be created in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def file_identity(status: os.stat_result) -> list[int]:
    """Return inode, modification and change time; not the device, whose number changes between mounts."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


class CheckpointStatus(StrEnum):
    """What is at a checkpoint's path: nothing, the recorded file, another file, or one that cannot be read."""

    GONE = "gone"
    INTACT = "intact"
    OTHER = "other"
    UNREADABLE = "unreadable"


def check_stored_weights(have: StoredWeights) -> CheckpointStatus:
    """Compare the file at a checkpoint's path with the record; it is hashed only if its identity has changed."""
    try:
        status = have.path.stat()
        if status.st_size != have.size_bytes:
            return CheckpointStatus.OTHER
        # in a copied, read-only cache, which cannot record, the modification time is enough
        is_copy = status.st_mtime_ns in have.identity and not is_writable(have.path.parent)
        if is_copy or is_untouched(have) or known_sha256(have.path) == have.sha256:
            return CheckpointStatus.INTACT
    except FileNotFoundError:
        return CheckpointStatus.GONE
    except (OSError, ModelError):
        return CheckpointStatus.UNREADABLE
    return CheckpointStatus.OTHER


def is_untouched(have: StoredWeights) -> bool:
    """Return whether the file has the identity that it had when its digest was last verified."""
    with contextlib.suppress(OSError):
        return file_identity(have.path.stat()) == list(have.identity)
    return False


def is_intact(have: StoredWeights) -> bool:
    """Return whether the file at a checkpoint's path is the recorded one, and can be read."""
    return check_stored_weights(have) is CheckpointStatus.INTACT


def record_identity(have: StoredWeights) -> None:
    """Record the new identity of an intact checkpoint, so that it is hashed once.

    Nothing is recorded in a read-only cache, nor while another process holds the lock and may be replacing the file.
    """
    from filelock import FileLock, Timeout

    with (
        contextlib.suppress(OSError, NotImplementedError, Timeout, ModelError),
        FileLock(have.path.with_name("lock"), timeout=0),
    ):
        identity = file_identity(have.path.stat())
        if read_sidecar(sidecar_path(have.path)) == have and known_sha256(have.path) == have.sha256:
            _write_sidecar(replace(have, identity=identity))


def _delete_others(kept: Path) -> None:
    """Delete the model's other checkpoints, which have sidecars, and temporary copies; other files are the user's."""
    obsolete = list_files(kept.parent, ".*")
    for sidecar in list_files(kept.parent, "*.json"):
        if sidecar != sidecar_path(kept) and read_sidecar(sidecar) is not None:
            obsolete += [sidecar.with_suffix(""), sidecar]
    for path in obsolete:
        with contextlib.suppress(OSError):
            path.unlink()

"""The checkpoints in the cache: where they are, what is known of them, and whether they are intact.

A model's checkpoint is `checkpoints/<model>/<file>`, with a JSON sidecar that records its digest and its origin; the
sidecar stays when the checkpoint is pruned. Where a checkpoint is taken from is the business of acquire.py.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from mfcli.errors import ModelError
from mfcli.files import cache_write_error, is_folder, list_files, sha256_of, write_atomically
from mfcli.models.registry import Variant
from mfcli.settings import Settings


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


def checkpoint_folder(variant: Variant, settings: Settings) -> Path:
    """Return the folder of a model's checkpoint."""
    return settings.cache_dir / "checkpoints" / variant.name


def manual_path(variant: Variant, settings: Settings) -> Path:
    """Return where the user may place a model's checkpoint."""
    return checkpoint_folder(variant, settings) / variant.sources[0].file_name


def find_stored_weights(variant: Variant, settings: Settings) -> StoredWeights | None:
    """Return what is recorded of a model's checkpoint, None if nothing; one that is not pruned takes precedence."""
    known = [read_sidecar(path) for path in list_files(checkpoint_folder(variant, settings), "*.json")]
    return max((k for k in known if k), key=lambda k: (k.is_here, k.date), default=None)


def list_checkpoints(settings: Settings) -> list[Path]:
    """Return the checkpoints in the cache; the parent folder of each is named after its model."""
    found = list_files(settings.cache_dir / "checkpoints", "*/*")
    files = [path for path in found if path.suffix != ".json" and path.name != "lock" and path.name[0] != "."]
    return [path for path in files if not is_folder(path)]


def list_artifacts(settings: Settings) -> list[tuple[str, Path]]:
    """Return the artifacts in the cache, valid or not, each with the name of its model."""
    found = list_files(settings.cache_dir / "artifacts", "*.onnx")
    return [(path.stem.rpartition("-")[0], path) for path in found if path.name[0] != "." and not is_folder(path)]


def sidecar_path(path: Path) -> Path:
    """Return the sidecar of a checkpoint."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> StoredWeights | None:
    """Read a sidecar; None if it is missing or damaged."""
    try:
        known = json.loads(path.read_bytes())
        found = {name: known[name] for name in _SIDECAR_FIELDS if name in known}  # other versions have other fields
        return StoredWeights(path=path.with_suffix(""), **found | {"identity": list(known.get("identity") or ())})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_SIDECAR_FIELDS = tuple(field.name for field in fields(StoredWeights) if field.name != "path")


def is_writable(folder: Path) -> bool:
    """Return whether files can be created in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


class CheckpointStatus(StrEnum):
    """What is at a checkpoint's path: nothing, the recorded file, another file, or one that cannot be read."""

    GONE = "gone"
    INTACT = "intact"
    OTHER = "other"
    UNREADABLE = "unreadable"


def check_stored_weights(have: StoredWeights) -> CheckpointStatus:
    """Compare the file at a checkpoint's path with the record; it is hashed only if its identity has changed.

    A new identity of the same bytes is recorded, so that the file is hashed once.
    """
    try:
        status = have.path.stat()
    except FileNotFoundError:
        return CheckpointStatus.GONE
    except OSError:
        return CheckpointStatus.UNREADABLE
    if status.st_size != have.size_bytes:
        return CheckpointStatus.OTHER
    if is_untouched(have) or (_is_copy(status, have) and not is_writable(have.path.parent)):
        return CheckpointStatus.INTACT
    try:
        if sha256_of(have.path) != have.sha256:
            return CheckpointStatus.OTHER
    except ModelError:
        return CheckpointStatus.UNREADABLE
    _record_identity(have, file_identity(status))
    return CheckpointStatus.INTACT


def is_untouched(have: StoredWeights) -> bool:
    """Return whether the file has the identity that it had when its digest was last verified."""
    with contextlib.suppress(OSError):
        return file_identity(have.path.stat()) == list(have.identity)
    return False


def is_intact(have: StoredWeights) -> bool:
    """Return whether the file at a checkpoint's path is the recorded one, and can be read."""
    return check_stored_weights(have) is CheckpointStatus.INTACT


def _is_copy(status: os.stat_result, have: StoredWeights) -> bool:
    """Whether its modification time is the recorded one: enough for a copied, read-only cache, which cannot record."""
    return status.st_mtime_ns in have.identity


def file_identity(status: os.stat_result) -> list[int]:
    """Return inode, modification and change time; not the device, whose number changes between mounts."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _record_identity(have: StoredWeights, identity: list[int]) -> None:
    """Update the sidecar, unless another process holds the lock, and may be replacing the file."""
    from filelock import FileLock, Timeout

    with (  # in a read-only cache the file is hashed each time
        contextlib.suppress(OSError, NotImplementedError, Timeout),
        FileLock(have.path.with_name("lock"), timeout=0),
    ):
        if read_sidecar(sidecar_path(have.path)) == have:
            _write_sidecar(replace(have, identity=identity))


def _write_sidecar(kept: StoredWeights) -> None:
    sidecar = {name: value for name, value in asdict(kept).items() if name != "path"}
    write_atomically(sidecar_path(kept.path), json.dumps(sidecar).encode())


def choose_path(variant: Variant, settings: Settings, file_name: str) -> Path:
    """Return where a checkpoint is kept: under one of the model's own file names, whatever it was called before."""
    own = {source.file_name for source in variant.sources}
    if file_name not in own:
        file_name = "model.safetensors" if file_name.endswith(".safetensors") else f"{variant.name}.pth"
    return checkpoint_folder(variant, settings) / file_name


def store_checkpoint(target: Path, move: Callable[[Path], object], fields: dict[str, Any]) -> StoredWeights:
    """Move a verified checkpoint to its place, write its sidecar, and delete the checkpoints that it replaces.

    Args:
        target: its place, see `choose_path`.
        move: puts the file there.
        fields: `url`, `etag`, `commit` and `sha256` of the sidecar.

    Raises:
        OutputError: the cache is not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar_file = sidecar_path(target)
        sidecar_file.unlink(missing_ok=True)  # the old digest must never lie beside the new file
        move(target)
        status = target.stat()
        kept = StoredWeights(
            path=target,
            size_bytes=status.st_size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            identity=file_identity(status),
            **fields,
        )
        _write_sidecar(kept)
        _delete_others(target)
    except OSError as error:
        raise cache_write_error(target.parent, error) from error
    return kept


def _delete_others(kept: Path) -> None:
    """Delete the model's other checkpoints, which have sidecars, and temporary copies; other files are the user's."""
    obsolete = list_files(kept.parent, ".*")
    for sidecar in list_files(kept.parent, "*.json"):
        if sidecar != sidecar_path(kept) and read_sidecar(sidecar) is not None:
            obsolete += [sidecar.with_suffix(""), sidecar]
    for path in obsolete:
        with contextlib.suppress(OSError):
            path.unlink()

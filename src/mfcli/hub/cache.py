"""What is on the disk of weights: the files that ship with the package, and the checkpoints that the cache holds.

A row's checkpoint lies in `checkpoints/<row>/` of the cache, with a sidecar that says where it came from and what its
digest is; the sidecar stays when the checkpoint is pruned. How a checkpoint gets there is weights.py's.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from mfcli.errors import ModelError
from mfcli.files import is_folder, list_files, sha256_of, write_atomically
from mfcli.models.registry import Variant
from mfcli.settings import Settings


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A row's checkpoint in the cache.

    Attributes:
        path: where it is, or, when it was pruned, where it was.
        sha256: its digest.
        size_bytes: its size.
        url: where it came from; None for a file carried by hand.
        etag: the server's name for this version.
        commit: the hub's commit.
        date: when it arrived, ISO 8601 in UTC.
        identity: inode and both times of the file when its digest was last known to be this one; empty where unknown.
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
        """Whether there is a file, as long as the checkpoint was; `is_intact` says whether it is the checkpoint."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.size_bytes
        return False


def checkpoint_folder(variant: Variant, settings: Settings) -> Path:
    """Return the folder of a row's checkpoint."""
    return settings.cache_dir / "checkpoints" / variant.name


def manual_path(variant: Variant, settings: Settings) -> Path:
    """Return where a checkpoint that was carried by hand is found."""
    return checkpoint_folder(variant, settings) / variant.sources[0].file_name


def find_stored_weights(variant: Variant, settings: Settings) -> StoredWeights | None:
    """Return what the cache knows of a row's checkpoint, be it there or pruned; the one that is there first."""
    known = [read_sidecar(path) for path in list_files(checkpoint_folder(variant, settings), "*.json")]
    return max((k for k in known if k), key=lambda k: (k.is_here, k.date), default=None)


def list_checkpoints(settings: Settings) -> list[Path]:
    """Return the checkpoints in the cache; each lies in the folder of its row."""
    found = list_files(settings.cache_dir / "checkpoints", "*/*")
    files = [path for path in found if path.suffix != ".json" and path.name != "lock" and path.name[0] != "."]
    return [path for path in files if not is_folder(path)]


def list_artifacts(settings: Settings) -> list[tuple[str, Path]]:
    """Return what is made of checkpoints in the cache, good or not, with the name of its row."""
    found = list_files(settings.cache_dir / "artifacts", "*.onnx")
    return [(path.stem.rpartition("-")[0], path) for path in found if path.name[0] != "." and not is_folder(path)]


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of a checkpoint lies."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> StoredWeights | None:
    """Read a sidecar; None for one that is damaged."""
    try:
        known = json.loads(path.read_bytes())
        found = {name: known[name] for name in _SIDECAR if name in known}  # other versions may write others
        return StoredWeights(path=path.with_suffix(""), **found | {"identity": list(known.get("identity") or ())})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_SIDECAR = tuple(field.name for field in fields(StoredWeights) if field.name != "path")


def is_writable(folder: Path) -> bool:
    """Return whether files can be made in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


class CheckpointStatus(StrEnum):
    """What is in a checkpoint's place: nothing, the file that arrived, another, or one that may not be read."""

    GONE = "gone"
    INTACT = "intact"
    OTHER = "other"
    UNREADABLE = "unreadable"


def check_stored_weights(have: StoredWeights) -> CheckpointStatus:
    """Look at what is in a checkpoint's place; it is hashed only when it was touched."""
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
    _remember_identity(have, file_identity(status))
    return CheckpointStatus.INTACT


def is_untouched(have: StoredWeights) -> bool:
    """Return whether nobody has touched the file in a checkpoint's place since its digest was last looked at."""
    with contextlib.suppress(OSError):
        return file_identity(have.path.stat()) == list(have.identity)
    return False


def is_intact(have: StoredWeights) -> bool:
    """Return whether the file in a checkpoint's place is the one that arrived, and can be read."""
    return check_stored_weights(have) is CheckpointStatus.INTACT


def _is_copy(status: os.stat_result, have: StoredWeights) -> bool:
    """Whether it is as old to the nanosecond: in a cache that was copied and cannot be written, that must do."""
    return status.st_mtime_ns in have.identity


def file_identity(status: os.stat_result) -> list[int]:
    """Return inode and both times, what another file in the same place has different.

    The device is not in it, which each machine numbers anew.
    """
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _remember_identity(have: StoredWeights, identity: list[int]) -> None:
    """So that it is not hashed again; not while another process may be bringing another file."""
    from filelock import FileLock, Timeout

    with (  # a cache that cannot be written costs time, not correctness
        contextlib.suppress(OSError, NotImplementedError, Timeout),
        FileLock(have.path.with_name("lock"), timeout=0),
    ):
        if read_sidecar(sidecar_path(have.path)) == have:
            write_sidecar(replace(have, identity=identity))


def write_sidecar(kept: StoredWeights) -> None:
    """Write what is known of a checkpoint beside it.

    Raises:
        OSError: it cannot be written.
    """
    sidecar = {name: value for name, value in asdict(kept).items() if name != "path"}
    write_atomically(sidecar_path(kept.path), json.dumps(sidecar).encode())

"""What a name means (a URL, a glob, a file), files that appear whole or not at all, their digests, and a lock."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from mfcli.errors import ModelError, OutputError
from mfcli.results import Progress

ELSEWHERE = "name another folder: MF_CACHE_DIR=DIR"
"""What to do about a cache that cannot be written."""
MAKE_ROOM = f"free some space (mf cache rm MODEL), or {ELSEWHERE}"
"""What to do about a cache that is full."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?[]")


def url_scheme(name: str) -> str | None:
    """Return the scheme of a URL in lower case, None for the name of a file."""
    match = _SCHEME.match(name)
    return match[1].lower() if match else None


def is_url(name: str) -> bool:
    """Return whether a name is a URL, of whatever scheme, and not a file's."""
    return url_scheme(name) is not None


def is_glob(text: str) -> bool:
    """Return whether a text has wildcards."""
    return _WILDCARD.search(text) is not None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error.strerror) from error


def _unreadable(path: Path, reason: str | None) -> ModelError:
    return ModelError(f"cannot read weights from {path}: {reason}", "expected a .pth or .safetensors file")


def cached_sha256(path: Path, index_dir: Path) -> str:
    """Return the SHA-256 of a checkpoint, hashed only when the file is new or has changed.

    A small file a path in `index_dir` remembers the digest together with device, inode, size and both times of the
    file, as git's index does; hashing 100 MB at every start would cost more than the prediction.

    Raises:
        ModelError: the file cannot be read.
    """
    path = Path(os.path.realpath(path))
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "not a regular file")
    identity = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    entry = index_dir / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        known = json.loads(entry.read_bytes())
        if known["identity"] == identity:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered, or not readable: hash it
    digest = sha256_of(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
        write_atomically(entry, json.dumps({"path": str(path), "identity": identity, "sha256": digest}).encode())
    return digest


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to the disk and rename it, so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cache_write_error(folder: Path, error: OSError) -> OutputError:
    """Return the error that says that the cache cannot be written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"cannot write to the cache {folder}: {error.strerror or error}", MAKE_ROOM if is_full else ELSEWHERE
    )


def cache_delete_error(path: Path, error: OSError) -> OutputError:
    """Return the error that says that a file of the cache cannot be deleted."""
    return OutputError(
        f"cannot delete {path}: {error.strerror or error}",
        f"see who may write there: ls -ld {shlex.quote(str(path.parent))}",
    )


def exists(path: Path) -> bool:
    """Whether there is something; false, not an error, where it cannot be looked at, which is all that Path lacks."""
    with contextlib.suppress(OSError):
        return path.exists()
    return False


def is_file(path: Path) -> bool:
    """Whether there is a regular file, in the same way."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, in the same way."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Return what matches in a folder, sorted; nothing where it is not there or may not be entered."""
    with contextlib.suppress(OSError):
        return sorted(folder.glob(pattern))
    return []


@contextlib.contextmanager
def lock(path: Path, who: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file among processes; says who is waited for.

    Raises:
        OutputError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for {who}")
            held.acquire()
    except OSError as error:
        raise cache_write_error(path.parent, error) from error
    try:
        yield
    finally:
        held.release()

"""File primitives: names, checks, atomic writes, digests, a lock, and the errors of the cache, in this order.

What is kept where in the cache is decided by mfcli.hub and mfcli.artifact.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mfcli.errors import ModelError, OutputError
from mfcli.results import Progress

ELSEWHERE = "name another folder: MF_CACHE_DIR=DIR"
"""What to do about a cache that is not writable."""
MAKE_ROOM = f"free some space (mf cache rm MODEL), or {ELSEWHERE}"
"""What to do about a full disk."""

GIT_LFS_START = b"version https://"
"""The first 16 bytes of a text that stands for a file in a git repository until `git lfs pull` fetches the file."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?[]")


def url_scheme(name: str) -> str | None:
    """Return the scheme of a URL in lower case, None for a file name."""
    match = _SCHEME.match(name)
    return match[1].lower() if match else None


def is_url(name: str) -> bool:
    """Return whether a name is a URL, of any scheme, rather than a file name."""
    return url_scheme(name) is not None


def is_glob(text: str) -> bool:
    """Return whether a text contains wildcards."""
    return _WILDCARD.search(text) is not None


def exists(path: Path) -> bool:
    """Return whether a path exists; unlike Path.exists, False if its folder may not be entered."""
    with contextlib.suppress(OSError):
        return path.exists()
    return False


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False if its folder may not be entered."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if its parent may not be entered."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Return what matches a glob in a folder, sorted: all but folders, dangling links included.

    The list is empty if the folder is missing or may not be entered.
    """
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.glob(pattern) if not is_folder(path))
    return []


class NotRegularError(OSError):
    """Something that is not a regular file lies where one should."""


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading; a pipe in its place is refused, and never waited on.

    Raises:
        NotRegularError: it is not a regular file.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> Any:
    """Return what a JSON file of the cache holds.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not JSON, or nested too deep.
    """
    with open_regular(path) as file:
        try:
            return json.loads(file.read())
        except RecursionError as error:
            raise ValueError("nested too deep") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside its target, flush it to disk and rename it, so that readers see all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomically(path: Path, owner: str | None = None) -> Iterator[BinaryIO]:
    """Open a file beside its target for writing, which takes the target's place when the block ends without an error.

    Args:
        path: the target.
        owner: is in the name of the file; None for the number of the process.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{owner or os.getpid()}-{os.urandom(4).hex()}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise weights_read_error(path, error) from error


def sha256_of_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cached_sha256(path: Path, index_dir: Path) -> str:
    """Return the SHA-256 of a checkpoint, computed only if the file is new or has changed.

    `index_dir` has a small file per path with the digest and the device, inode, size and both times of the file, as
    git's index does: hashing 100 MB at every start would take longer than a prediction.

    Raises:
        ModelError: the file cannot be read.
    """
    path, *identity = version = _identify_version(path)
    entry = index_dir / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        known = read_json(entry)
        if known["identity"] == identity:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no entry, or a damaged one
    digest = _hash_version(*version)
    with contextlib.suppress(OSError):  # in a read-only cache it is computed each time
        write_atomically(entry, json.dumps({"path": str(path), "identity": identity, "sha256": digest}).encode())
    return digest


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint, computed once per process unless the file changes; nothing is written.

    Raises:
        ModelError: the file cannot be read.
    """
    return _hash_version(*_identify_version(path))


@functools.lru_cache
def _hash_version(path: Path, *_: int) -> str:
    return sha256_of(path)


def _identify_version(path: Path) -> tuple[Path, int, int, int, int, int]:
    """Return a file's real path with its device, inode, size and both times."""
    path = Path(os.path.realpath(path))
    try:
        status = path.stat()
    except OSError as error:
        raise weights_read_error(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file", "expected a .pth or .safetensors file")
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def weights_read_error(path: Path, error: OSError) -> ModelError:
    """Return the error of a checkpoint that cannot be read."""
    hint = f"see what is there, and who may read it: ls -l {shlex.quote(str(path.parent))}"
    return ModelError(f"cannot read weights from {path}: {error.strerror}", hint)


@contextlib.contextmanager
def lock(path: Path, who: str, progress: Progress) -> Iterator[None]:
    """Hold a lock file, so that one process at a time does something.

    Args:
        path: the lock file.
        who: the other process, in the message that this one waits for it.
        progress: told that it waits.

    Raises:
        OutputError: the lock file cannot be created.
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


def cache_write_error(folder: Path, error: OSError) -> OutputError:
    """Return the error of a cache that cannot be written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"cannot write to the cache {folder}: {error.strerror or error}", MAKE_ROOM if is_full else ELSEWHERE
    )


def cache_delete_error(path: Path, error: OSError) -> OutputError:
    """Return the error of a file in the cache that cannot be deleted."""
    return OutputError(
        f"cannot delete {path}: {error.strerror or error}",
        f"see who may write there: ls -ld {shlex.quote(str(path.parent))}",
    )

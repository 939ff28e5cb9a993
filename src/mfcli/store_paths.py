"""Folders in object stores as paths: as much of pathlib as plans and their parts need, and files that appear whole.

Where an operation fails, it raises an OSError, as with a file.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from io import BufferedRandom
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, TypeVar

from mfcli import files, stores
from mfcli.errors import FailureCode, PictureError
from mfcli.store_urls import find_store_url, split_store_url

Item = TypeVar("Item")
Result = TypeVar("Result")

_TIMEOUT_S = 30.0
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})
"""Errors of hard links on file systems without them, such as FAT, SMB and gcsfuse."""
_MAX_BYTES = 2**28
"""The largest object that is read into memory."""


class StorePath(PurePosixPath):
    """An object, or all whose keys begin with this one and a slash; as text it is its URL."""

    __slots__ = ()

    def __str__(self) -> str:
        joined = super().__str__()
        return find_store_url(joined) or joined

    def exists(self) -> bool:
        """Return whether there is an object of this name."""
        with _raise_os_errors(self):
            return stores.has_object(str(self), _TIMEOUT_S)

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return self.exists()

    def iterdir(self) -> Iterator["StorePath"]:
        """Yield the objects below this one, whose names may have slashes."""
        _, prefix = split_store_url(f"{self}/")
        with _raise_os_errors(self):
            for found in stores.list_objects(f"{self}/", _TIMEOUT_S):
                yield self / found.key[len(prefix) :]

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Do nothing: there are no folders."""

    def touch(self) -> None:
        """Write an empty object."""
        self.write_bytes(b"")

    def open(self, mode: Literal["rb"]) -> BufferedRandom:  # noqa: ARG002 - as Path has it
        """Open a copy of the object, which is deleted when it is closed."""
        import tempfile  # takes a few milliseconds

        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
        with _raise_os_errors(self):
            stores.download_object(str(self), file, _TIMEOUT_S)
        file.seek(0)
        return file

    def read_bytes(self) -> bytes:
        """Return the bytes of the object."""
        with _raise_os_errors(self):
            return stores.read_object(str(self), _TIMEOUT_S, _MAX_BYTES).read()

    def write_bytes(self, data: bytes) -> None:
        """Write the object, as a whole."""
        with _raise_os_errors(self):
            stores.write_object(str(self), data, _TIMEOUT_S)

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: ARG002 - stores do not tell
        """Delete the object."""
        with _raise_os_errors(self):
            stores.delete_object(str(self), _TIMEOUT_S)


AnyPath = Path | StorePath


def find_path(path: AnyPath) -> AnyPath:
    """Return a path that was made from the URL of a store as one in that store, and any other as it is."""
    return StorePath(path) if find_store_url(str(path)) else path


def list_files(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Return what matches a glob in a folder; see `files.list_files`."""
    if isinstance(folder, Path):
        return list[AnyPath](files.list_files(folder, pattern))
    return [path for path in folder.iterdir() if path.parent == folder and fnmatchcase(path.name, pattern)]


def map_files(
    folder: AnyPath, function: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Iterator[Result]:
    """Yield what a function that reads files of a folder returns for each item, in order.

    Args:
        folder: whose files are read.
        function: called in other threads, if the folder is in a store: most of its time goes by with waiting.
        items: its arguments.
        at_once: calls under way in a store; in a local folder it is one.
    """
    if isinstance(folder, Path):
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor  # takes a few milliseconds

    with ThreadPoolExecutor(at_once) as threads:
        yield from threads.map(function, items)


@contextlib.contextmanager
def open_atomically(path: AnyPath, owner: str | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing, which appears as a whole; see `files.open_atomically`.

    An object is written into a temporary file first, and then uploaded.
    """
    if isinstance(path, Path):
        with files.open_atomically(path, owner) as opened:
            yield opened
        return
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="mf-") as file:
        yield file  # type: ignore[misc]  # has what a binary file has
        file.flush()
        with _raise_os_errors(path):
            stores.upload_file(Path(file.name), str(path), _TIMEOUT_S)


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Write a file that appears as a whole; see `files.write_atomically`."""
    if isinstance(path, Path):
        files.write_atomically(path, data)
    else:
        path.write_bytes(data)


def create(path: AnyPath, data: bytes) -> None:
    """Write a file as a whole, unless another process has done so.

    Raises:
        OSError: it cannot be written.
    """
    if not isinstance(path, Path):
        with _raise_os_errors(path):
            stores.create_object(str(path), data, _TIMEOUT_S)
        return
    own = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        own.write_bytes(data)
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(data)
    finally:
        own.unlink(missing_ok=True)


def is_writable(folder: AnyPath) -> bool:
    """Return whether files can be created in a folder."""
    if isinstance(folder, Path):
        return os.access(folder, os.W_OK | os.X_OK)
    with _raise_os_errors(folder):
        stores.check_writable(str(folder / "part"), _TIMEOUT_S)
    return True


_ERRNOS = {FailureCode.NOT_FOUND: errno.ENOENT, FailureCode.PERMISSION: errno.EACCES}


@contextlib.contextmanager
def _raise_os_errors(path: StorePath) -> Iterator[None]:
    try:
        yield
    except PictureError as error:
        raise OSError(_ERRNOS.get(error.code, errno.EIO), error.message, str(path)) from error

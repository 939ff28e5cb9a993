"""Output files that appear whole or not at all: written beside their target and renamed."""

import contextlib
import errno
import fcntl
import glob
import io
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from mfcli.errors import OutputError
from mfcli.files import list_files
from mfcli.signals import defer_signals

if TYPE_CHECKING:
    from mfcli.store_paths import AnyPath

_PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """Return the file that holds the results for `path` until the run is complete; links are followed."""
    target = Path(os.path.realpath(path))
    return target.with_name(target.name + _PARTIAL_SUFFIX)


def is_partial(path: Path) -> bool:
    """Return whether a name is that of the results of an incomplete run."""
    return path.suffix == _PARTIAL_SUFFIX


def refuse_existing(path: Path, *, resumable: bool = False) -> None:
    """Check that a file can be created at `path`, and that no results would be lost.

    Args:
        path: the file.
        resumable: whether the run could go on with it, or with what an unfinished run has left of it.

    Raises:
        OutputError: it is a folder or a file with content, its folder does not exist, or may not be read; or an
            unfinished run has left results, or is still writing them.
    """
    partial = partial_path(path)
    with translate_write_errors(path):
        check_folder(path)
        exists, is_unfinished = has_content(path), resumable and has_content(partial)
    if exists:
        raise OutputError(
            f"{path} exists", f"overwrite=True replaces it{'; resume=True goes on with it' if resumable else ''}"
        )
    if is_unfinished and _is_locked(partial):
        raise make_lock_error(partial)
    if is_unfinished:
        raise OutputError(
            f"{partial} holds the results of an unfinished run",
            "resume=True goes on with it; overwrite=True discards it",
        )


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was finished meanwhile, or may not be read
        pass
    return False


def make_lock_error(path: Path) -> OutputError:
    """Return the error of a file that another process writes."""
    return OutputError(f"{path} is being written by another mf", "wait for it, or name another file: output=FILE")


def has_content(path: Path) -> bool:
    """Return whether there is a regular file that is not empty."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def check_folder(path: Path) -> None:
    """Check that `path` can name a file: it is not a folder, and its folder exists.

    Raises:
        OutputError: it cannot.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name a file: output=results.jsonl")
    if not path.parent.is_dir():
        raise OutputError(
            f"{path} cannot be written: there is no folder {path.parent}", f"mkdir -p {shlex.quote(str(path.parent))}"
        )


@contextlib.contextmanager
def translate_write_errors(path: "AnyPath") -> Iterator[None]:
    """Turn an OSError of writing `path` into an OutputError; a closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint: str | None = f"{'free some space, or ' if is_full else ''}name another file: output=FILE"
        if error.errno == errno.EIO and not isinstance(path, Path):  # of a store that cannot be reached
            hint = None
        if error.errno == errno.ENAMETOOLONG:
            hint = f"choose a shorter name: output=FILE; until a run is complete, its rows are in FILE{_PARTIAL_SUFFIX}"
        with contextlib.suppress(OSError):
            if isinstance(path, Path) and has_content(path if is_partial(path) else partial_path(path)):
                hint = f"{'free some space; ' if is_full else ''}resume=True goes on with what was done"
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint) from error


@contextlib.contextmanager
def atomic_output(path: Path, *, replace: bool = True) -> Iterator[TextIO]:
    """Open a text stream whose content is renamed to `path` at the end, as a whole; after an exception it is deleted.

    The content is compressed if the name ends with `.gz`. Terminals, pipes and other special files are written
    directly.

    Args:
        path: the file.
        replace: whether a file that exists at the end may be replaced.

    Raises:
        OutputError: the file cannot be written, or may not be replaced.
    """
    with translate_write_errors(path):
        check_folder(path)
        if path.exists() and not path.is_file():
            with path.open("wb") as device, _encode(device, path) as stream:
                yield stream
            return
        with open_beside(path, replace) as (file, publish):
            with _encode(file, path) as stream:
                yield stream
            publish()


@contextlib.contextmanager
def open_beside(path: Path, replace: bool = True) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """Open a file beside `path`; yield it and a function that renames it to `path`, keeping the old file's mode.

    Where that function was not called, the file is deleted. A symbolic link at `path` stays, and its target is
    replaced. A file that was created meanwhile and may not be replaced stays; the new one is kept beside it.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:50]}.{os.getpid()}.part")  # 50 characters may be 200 bytes
    file = part.open("w+b")  # a file of this name is left over from a killed process

    def publish() -> None:
        with defer_signals():
            spare = target.with_name(f"{target.stem[:50]}.{os.getpid()}{target.suffix}")
            is_taken = not replace and has_content(target)
            publish_file(file, part, spare if is_taken else target)
            if is_taken:
                raise OutputError(f"{path} was created while this run was in progress", f"the results are in {spare}")

    try:
        yield file, publish
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a failed flush of a file that is deleted
            file.close()


def find_leftovers(path: Path) -> list[Path]:
    """Return the files that killed processes have left beside `path`, which they did not get to rename."""
    targets = (Path(os.path.realpath(path)), partial_path(path))
    found = [left for to in targets for left in list_files(to.parent, f".{glob.escape(to.name[:50])}.*.part")]
    return [left for left in dict.fromkeys(found) if not _is_running(left.name.split(".")[-2])]


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def publish_file(file: BinaryIO, part: Path, target: Path) -> None:
    """Rename an open file, once it is on the disk; it gets the mode of the file that it replaces.

    Raises:
        OSError: it cannot be renamed, or not all of it written.
    """
    file.flush()
    os.fsync(file.fileno())
    with contextlib.suppress(OSError):
        part.chmod(stat.S_IMODE(target.stat().st_mode))
    part.replace(target)


@contextlib.contextmanager
def _encode(file: BinaryIO, path: Path) -> Iterator[TextIO]:
    """Yield a text stream on a binary one, which compresses if the name of its file ends with `.gz`."""
    with contextlib.ExitStack() as stack:
        if is_compressed(path):
            import gzip

            compressed = gzip.GzipFile("", "wb", 6, file, mtime=0)  # equal results give equal bytes
            file = stack.enter_context(compressed)  # type: ignore[assignment]  # has what a text stream needs
        stream = open_text(file)
        try:
            yield stream
        finally:
            stream.detach()  # flushes; the file stays open


def is_compressed(path: Path) -> bool:
    """Return whether the name of a file says that its content is compressed."""
    return path.suffix.lower() == ".gz"


def open_text(file: BinaryIO, *, line_buffering: bool = False) -> io.TextIOWrapper:
    """Return a UTF-8 text stream on a binary one, without newline translation; surrogates become `?`."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", line_buffering=line_buffering)

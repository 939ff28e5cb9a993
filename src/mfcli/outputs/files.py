"""Output files that appear whole or not at all: written beside their target and renamed."""

import contextlib
import errno
import io
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from mfcli.errors import MfError, OutputError
from mfcli.signals import ForcedInterrupt, defer_signals


def refuse_existing(path: Path) -> None:
    """Check that a file can be created at `path`, and that no results would be lost.

    Raises:
        OutputError: it is a folder or a file with content, its folder does not exist, or may not be read.
    """
    with translate_write_errors(path):
        check_folder(path)
        exists = path.is_file() and path.stat().st_size > 0
    if exists:
        raise OutputError(f"{path} exists", "overwrite=True replaces it; resume=True goes on with a .jsonl file")


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
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing `path` into an OutputError; a closed pipe stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "name another file: output=FILE"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            go_on = "; resume=True goes on" if path.suffix == ".jsonl" else ""
            hint = f"free some space{go_on}, or {hint}"
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint) from error


@contextlib.contextmanager
def atomic_output(path: Path, *, replace: bool = True) -> Iterator[TextIO]:
    """Open a text stream whose content is renamed to `path` at the end, as a whole.

    After an interrupt or an MfError, what was written until then is published too. After any other exception, which
    may come in the middle of a row, and where nothing was written, the old file stays. Terminals, pipes and other
    special files are written directly.

    Args:
        path: the file.
        replace: whether a file that exists at the end may be replaced; else the new one is kept beside it.

    Raises:
        OutputError: the file cannot be written, or may not be replaced.
    """
    with translate_write_errors(path):
        check_folder(path)
        if path.exists() and not path.is_file():
            with open_text(path.open("wb")) as stream:
                yield stream
            return
        with open_beside(path, replace) as (file, publish):
            stream = open_text(file)
            try:
                yield stream
            except ForcedInterrupt:
                raise
            except (KeyboardInterrupt, MfError):
                stream.flush()
                if file.tell():
                    publish()
                raise
            stream.flush()
            publish()


@contextlib.contextmanager
def open_beside(path: Path, replace: bool = True) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """Open a file beside `path`; yield it and a function that renames it to `path`, keeping the old file's mode.

    Where that function was not called, the file is deleted. A symbolic link at `path` stays, and its target is
    replaced.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name[:50]}.{os.getpid()}.part")  # 50 characters may be 200 bytes
    file = partial.open("w+b")  # a file of this name is left over from a killed process

    def publish() -> None:
        with defer_signals():
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            if not replace and target.is_file() and target.stat().st_size:
                spare = target.with_name(f"{target.stem[:50]}.{os.getpid()}{target.suffix}")
                partial.replace(spare)
                raise OutputError(f"{path} was created while this run was in progress", f"the results are in {spare}")
            partial.replace(target)

    try:
        yield file, publish
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a failed flush of a file that is deleted
            file.close()


def open_text(file: BinaryIO) -> TextIO:
    """Return a UTF-8 text stream on a binary one, without newline translation; surrogates become `?`."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")

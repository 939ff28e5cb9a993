"""The three standard streams: stdout is data, stderr is talk, and either may be closed, full or gone."""

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from mfcli.cli.flags import name_flags
from mfcli.errors import OutputError, escape_control_characters

_OF_A_STREAM = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EINVAL, errno.EAGAIN, errno.ENXIO),
        *(errno.ENODEV, errno.ESTALE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.EPERM),
    }
)
"""What writing fails with; other errors without a file's name are those of a library that is missing, for instance."""


class ReaderGoneError(Exception):
    """Whoever read our output has stopped reading; that is no failure."""


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output as UTF-8; a reader that went away ends the program quietly, a full disk with exit code 8."""
    require_standard_output()
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        # PYTHONUNBUFFERED, common in containers: what a signal cuts off of a write to a pipe would be lost
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer))
    _wait_for(sys.stdout)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        _drop_standard_output()
        raise ReaderGoneError from error
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_A_STREAM:  # of something else
            raise
        _drop_standard_output()
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the results: {reason}", "free some space, or send them elsewhere") from error
    except SystemExit as error:  # typer's way to end when the reader of the help has gone
        _drop_standard_output()
        raise ReaderGoneError from error


def keep_descriptors() -> None:
    """Put the null device where a standard stream is closed.

    What is opened next would have its number otherwise, and a C library that complains on number 2 would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def standard_input() -> BinaryIO | None:
    """Return standard input, None where it is closed."""
    if sys.stdin is None:
        return None
    _wait_for(sys.stdin)
    return sys.stdin.buffer


def goes_into_a_file(stream: TextIO | None) -> bool:
    """Return whether what is written goes into a file or nowhere; who reads a pipe may itself write to the terminal."""
    with suppress(OSError, ValueError):
        if stream is not None:
            status = os.fstat(stream.fileno())
            return stat.S_ISREG(status.st_mode) or os.path.samestat(status, Path(os.devnull).stat())
    return False


def _wait_for(stream: IO[Any]) -> None:
    """Let reads and writes wait, where another program, ssh for one, has set the pipe not to."""
    with suppress(OSError, ValueError):
        os.set_blocking(stream.fileno(), True)


def require_standard_output() -> None:
    """Raise where there is none, before something that takes long.

    Raises:
        OutputError: it is closed.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed", "send it to a file: mf ... > FILE")


def _drop_standard_output() -> None:
    """What is still buffered can go nowhere: without this, it is tried again at exit, with a complaint."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Write a line to stderr, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Write a note to stderr."""
    say(f"note: {escape_control_characters(name_flags(message))}")


def fail(message: str, hint: str | None = None) -> None:
    """Write what went wrong and the next step to stderr."""
    say(f"error: {escape_control_characters(name_flags(message))}")
    if hint:
        say(f"hint: {escape_control_characters(name_flags(hint))}")

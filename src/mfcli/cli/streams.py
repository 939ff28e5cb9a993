"""The standard streams: data on stdout, messages on stderr. Either may be closed, and stdout full or a broken pipe."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, TextIO

from mfcli.cli.flags import name_flags
from mfcli.errors import OutputError, escape_control_characters

_STREAM_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EINVAL, errno.EAGAIN, errno.ENXIO),
        *(errno.ENODEV, errno.ESTALE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT, errno.EPERM),
    }
)
"""Errors of writing to a stream; others without a file name have other causes, such as a missing library."""


_STDERR = 2


class ReaderGoneError(Exception):
    """The reader of standard output has closed the pipe, which is not a failure of the command."""


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Yield standard output as UTF-8, flushed after each line.

    Raises:
        OutputError: it is closed, or the disk is full.
        ReaderGoneError: the reader has closed the pipe.
    """
    require_standard_output()
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        # PYTHONUNBUFFERED, common in containers: a signal could cut off a write to a pipe
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer))
    _make_blocking(sys.stdout)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n", line_buffering=True)
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        _drop_standard_output()
        raise ReaderGoneError from error
    except OSError as error:
        if error.filename is not None or error.errno not in _STREAM_ERRORS:
            raise
        _drop_standard_output()
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the results: {reason}", "free some space, or write them elsewhere") from error
    except SystemExit as error:  # typer exits when the reader of a help page has closed the pipe
        _drop_standard_output()
        raise ReaderGoneError from error


def keep_descriptors() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file to be opened gets its descriptor, and a C library that reports errors on descriptor 2 would
    write into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number


@contextmanager
def mute_libraries() -> Iterator[None]:
    """Send what C libraries write to descriptor 2 in the body to the null device; Python's stderr stays as it is."""
    python = sys.stderr
    try:
        shares_descriptor = python is not None and python.fileno() == _STDERR
    except (OSError, ValueError):
        shares_descriptor = False
    shown, null = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    if shares_descriptor:
        python.flush()
        sys.stderr = open(shown, "w", 1, python.encoding, python.errors, closefd=False)  # noqa: SIM115
    os.dup2(null, _STDERR)
    os.close(null)
    try:
        yield
    finally:
        sys.stderr = python
        os.dup2(shown, _STDERR)
        os.close(shown)


def standard_input() -> BinaryIO | None:
    """Return standard input, None if it is closed."""
    if sys.stdin is None:
        return None
    _make_blocking(sys.stdin)
    return sys.stdin.buffer


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is open and a terminal."""
    return stream is not None and stream.isatty()


def _make_blocking(stream: IO[Any]) -> None:
    """Make reads and writes block, in case another program, such as ssh, has made the pipe non-blocking."""
    with suppress(OSError, ValueError):
        os.set_blocking(stream.fileno(), True)


def require_standard_output() -> None:
    """Check that standard output is open, before something slow begins.

    Raises:
        OutputError: it is closed.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed", "redirect it to a file: mf ... > FILE")


def _drop_standard_output() -> None:
    """Redirect it to the null device: Python would flush its buffer again at exit, and report the error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Write a line to stderr, if it is open."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Write a note to stderr."""
    say(f"note: {escape_control_characters(name_flags(message))}")


def fail(message: str, hint: str | None = None) -> None:
    """Write an error and a hint to stderr."""
    say(f"error: {escape_control_characters(name_flags(message))}")
    if hint:
        say(f"hint: {escape_control_characters(name_flags(hint))}")

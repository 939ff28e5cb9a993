"""Reads the names in a list, each as soon as its line has arrived; what a name means is decided in sources.py."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from mfcli.errors import UsageError

MAX_LINE_BYTES = 2**16
_CHUNK_BYTES = 2**16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_list(path: str) -> BinaryIO:
    """Open a list, which may be a named pipe.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        return open(path, "rb")  # closed by the reader, perhaps much later
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read the list {path}: {reason}", "files_from=FILE, or files_from=- for standard input"
        ) from error


def read_names(file: BinaryIO, *, nul: bool) -> Iterator[bytes]:
    """Yield the names in a list; a name over MAX_LINE_BYTES is cut, but stays longer than that.

    Args:
        file: a list, which may still be written to.
        nul: whether names end with NUL bytes; otherwise with LF or CRLF, and blank lines are skipped.
    """
    end = b"\0" if nul else b"\n"
    rest, is_skipping = b"", False
    for number, chunk in enumerate(_read_chunks(file)):
        if number == 0 and not nul:
            chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
        *lines, rest = (rest + chunk).split(end)
        for line in lines:
            if not is_skipping and (name := _strip_line(line, nul)):
                yield name
            is_skipping = False
        if len(rest) > MAX_LINE_BYTES + 1:
            if not is_skipping:
                yield rest
            rest, is_skipping = b"", True
    if not is_skipping and (name := _strip_line(rest, nul)):
        yield name


def _strip_line(line: bytes, nul: bool) -> bytes:
    """Return the name in a line, empty where there is none."""
    if nul:
        return line
    line = line.removesuffix(b"\r")
    return line if line.strip() else b""


def _read_chunks(file: Any) -> Iterator[bytes]:
    """Yield what the file has, without waiting for a full buffer."""
    read = getattr(file, "read1", file.read)
    while chunk := read(_CHUNK_BYTES):
        yield chunk

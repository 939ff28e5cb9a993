"""What zip and tar have in common: a member, the checks of its name and size, and the translation of errors.

Headers are not trusted: the limits apply to the bytes that are actually read. Links, devices and names that lead out of
the archive are refused.
"""

import contextlib
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

from mfcli.errors import FailureCode, MfError, PictureError, one_line
from mfcli.inputs.selection import MAX_NAME
from mfcli.results import Failure

_MAX_RATIO = 1000
"""Bytes out per byte in; only a blank picture compresses like that, and deflate can reach 1032."""
_RATIO_FROM_BYTES = 64 * 2**20
"""Smaller members may have any ratio: a blank bitmap of 20 million pixels, for example."""
_MAX_TOTAL_RATIO = 100
_TOTAL_FROM_BYTES = 16 * 2**30
"""What all members may unpack to together: a hundred times the archive's size, or this if that is more."""
_SECONDS, _SECONDS_PER_BYTE = 60.0, 4e-6
"""Processor time for unpacking all members; bzip2 and xz take 0.3 s for each megabyte of the archive."""
_CURRENT_FOLDER = re.compile(r"(\./+)+")
_NAME_TOO_LONG = Failure(FailureCode.UNSUPPORTED, f"its name is over {MAX_NAME} characters")
_LEADS_OUT = Failure(FailureCode.UNSUPPORTED, "its name points outside the archive")
IS_SPECIAL = Failure(FailureCode.UNSUPPORTED, "is a link or a device in the archive, and is not followed")


@dataclass(frozen=True, slots=True)
class Member:
    """One picture in an archive.

    Attributes:
        name: as text, bytes that are not UTF-8 as U+FFFD; None for a failure of the archive itself.
        failure: why it cannot be read, where that is known from its header.
        opener: returns its bytes, seekable; may be called from any thread and raises PictureError.
        target: the path or URL of the picture, where the member is only its name; else None.
        kept: what its row keeps, see `Selection.keep`.
        held_bytes: bytes of memory that it holds until it is released.
    """

    name: str | None
    failure: Failure | None = None
    opener: Callable[[], BinaryIO] | None = None
    target: str | None = None
    kept: dict[str, Any] | None = None
    held_bytes: int = 0


def relative_name(name: str) -> str:
    """Return the name of a member as it is compared: with slashes, without a leading `./`."""
    name = name.replace("\\", "/")  # some programs on Windows write it
    prefix = _CURRENT_FOLDER.match(name)
    return name[prefix.end() :] if prefix else name


def check_name(name: str) -> Failure | None:
    """Return why a member of this name is refused, None for one that is not."""
    if len(name) > MAX_NAME:
        return _NAME_TOO_LONG
    parts = relative_name(name).split("/")
    leads_out = parts[0] == "" or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":")
    return _LEADS_OUT if leads_out else None


def check_size(size_bytes: int, max_bytes: int) -> Failure | None:
    """Return why a member of this size is refused, None for one that is not."""
    if size_bytes > max_bytes:
        return Failure(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes when unpacked")
    return None


def refuse_oversize(bytes_out: int, max_bytes: int) -> None:
    """Refuse to unpack more than `max_bytes`.

    Raises:
        PictureError: too_large.
    """
    if failure := check_size(bytes_out, max_bytes):
        raise PictureError(failure.code, failure.message)


def refuse_bomb(bytes_out: int, bytes_in: int) -> None:
    """Refuse data that unpacks to over a thousand times its size.

    Raises:
        PictureError: too_large.
    """
    if bytes_out > _RATIO_FROM_BYTES and bytes_out > _MAX_RATIO * max(1, bytes_in):
        raise PictureError(
            FailureCode.TOO_LARGE, f"unpacks to over {_MAX_RATIO} times its size, possibly a decompression bomb"
        )


class UnpackingBudget:
    """What unpacking one archive may cost in all: bytes, and processor time, in proportion to its size."""

    def __init__(self, archive_bytes: int) -> None:
        self._bytes_left = max(_TOTAL_FROM_BYTES, _MAX_TOTAL_RATIO * archive_bytes)
        self._seconds_left = _SECONDS + _SECONDS_PER_BYTE * archive_bytes

    def read(self, data: IO[bytes], size: int) -> bytes:
        """Read unpacked data within the budget.

        Raises:
            PictureError: too_large.
        """
        with self.spend_time():
            chunk = data.read(size)
        self._bytes_left -= len(chunk)
        if self._bytes_left < 0:
            raise PictureError(FailureCode.TOO_LARGE, "the members of its archive are too large together")
        return chunk

    @contextlib.contextmanager
    def spend_time(self) -> Iterator[None]:
        """Account for the processor time of the body.

        Raises:
            PictureError: too_large.
        """
        if self._seconds_left < 0:
            raise PictureError(FailureCode.TOO_LARGE, "its archive takes too long to unpack")
        began = time.thread_time()
        yield
        self._seconds_left -= time.thread_time() - began


@contextlib.contextmanager
def translate_archive_errors() -> Iterator[None]:
    """Turn whatever reading raises, but MemoryError and MfError, into a PictureError.

    Hostile bytes raise almost anything.
    """
    try:
        yield
    except (MfError, MemoryError):
        raise
    except EOFError as error:
        raise PictureError(FailureCode.TRUNCATED, "is truncated: its data ends early") from error
    except RecursionError as error:  # a chain of long-name headers
        raise PictureError(FailureCode.DECODE, "is damaged: its headers are nested too deep") from error
    except RuntimeError as error:  # NotImplementedError among them
        raise PictureError(FailureCode.UNSUPPORTED, f"cannot be unpacked: {one_line(error)}") from error
    except tarfile.TarError as error:
        message = one_line(error)
        is_truncated = any(words in message for words in ("unexpected end", "truncated", "empty"))
        code = FailureCode.TRUNCATED if is_truncated else FailureCode.DECODE
        raise PictureError(code, f"is damaged: {message}") from error
    except Exception as error:
        raise PictureError(FailureCode.DECODE, f"is damaged: {one_line(error)}") from error

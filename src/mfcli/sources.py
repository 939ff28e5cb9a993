"""From arguments to an ordered stream of pictures: which ones, under which names, and how to open them.

What the bytes mean is images.py's business.
"""

import base64
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mfcli.errors import FailureCode, NoInputsError, PictureError, UsageError

STDIN = "-"
"""The argument that stands for the bytes of one picture on standard input."""

_FROM_STDIN = "mf predict - < PICTURE"


@dataclass(frozen=True, slots=True)
class Source:
    """One picture that is to be classified.

    Attributes:
        argument: what the user gave, undecodable bytes as surrogate escapes.
        stream: where the bytes come from when it is not a file.
    """

    argument: str
    stream: BinaryIO | None = None
    member: str | None = None

    @property
    def raw(self) -> bytes:
        """The exact bytes of the argument."""
        return os.fsencode(self.argument)

    @property
    def input(self) -> str:
        """The argument as text; bytes that are not UTF-8 are U+FFFD."""
        return os.fsencode(self.argument).decode("utf-8", errors="replace")

    @property
    def input_b64(self) -> str | None:
        """The argument's exact bytes in base64 where it is not UTF-8, else None."""
        raw = os.fsencode(self.argument)
        return None if raw == self.input.encode() else base64.b64encode(raw).decode()

    def open(self) -> BinaryIO:
        """Open the bytes for reading, seekable.

        Raises:
            PictureError: not_found, permission, or unsupported for what is not a regular file.
        """
        path = Path(self.argument)
        try:
            if self.stream is not None:
                return io.BytesIO(self.stream.read())
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise PictureError(FailureCode.UNSUPPORTED, "is a folder, not a picture")
            if not stat.S_ISREG(mode):
                raise PictureError(FailureCode.UNSUPPORTED, "is not a regular file; a pipe goes to: mf predict -")
            return path.open("rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PictureError(FailureCode.NOT_FOUND, "no such file") from error
        except PermissionError as error:
            raise PictureError(FailureCode.PERMISSION, "no permission to read it") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise PictureError(FailureCode.NOT_FOUND, f"cannot be opened: {reason}") from error


@dataclass(frozen=True, slots=True)
class Selection:
    """What of folders, archives and lists is taken, and limits."""

    recursive: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    timeout_s: float = 30.0
    offline: bool = False


def from_arguments(
    arguments: Iterable[str],
    stdin: BinaryIO | None,
    *,
    files_from: str | None = None,
    nul: bool = False,
    selection: Selection = Selection(),
) -> Iterator[Source]:
    """Return the pictures that the arguments name, in their order.

    Args:
        arguments: paths, or `-` for the bytes of one picture on standard input.
        stdin: standard input, None where there is none.

    Raises:
        NoInputsError: there are none.
        UsageError: standard input is named twice, is a keyboard, or is not there.
    """
    arguments = list(arguments)
    if not arguments:
        raise NoInputsError("nothing to classify", "mf predict PICTURE...")
    if arguments.count(STDIN) > 1:
        raise UsageError("'-' stands for one picture on standard input and can be given once", _FROM_STDIN)
    if STDIN in arguments and (stdin is None or stdin.isatty()):
        what = "closed" if stdin is None else "a keyboard"
        raise UsageError(f"'-' reads a picture from standard input, which is {what}", _FROM_STDIN)
    return (Source(a, stdin) if a == STDIN else Source(a) for a in arguments)

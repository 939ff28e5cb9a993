"""The results of a search as grep gives them: the names of the pictures that match, or their number."""

import base64
from typing import TextIO

from mfcli.errors import escape_control_characters
from mfcli.results import PictureResult
from mfcli.runs import RunInfo, Summary


def is_match(result: PictureResult) -> bool:
    """Return whether a picture was searched for and matches."""
    return result.match is not None and result.match.matches


class NameWriter:
    """The name of each picture that matches, at once; exactly its bytes, but for control characters in a terminal."""

    def __init__(self, stream: TextIO, *, nul: bool = False) -> None:
        """Write to a stream; `nul` ends each name with NUL instead of a line feed."""
        self._stream = stream
        self._end = b"\0" if nul else b"\n"

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write a name, flushed."""
        if not is_match(result):
            return
        if self._stream.isatty():
            name = escape_control_characters(result.shown_name).encode()
        else:
            name = result.input.encode() if result.input_b64 is None else base64.b64decode(result.input_b64)
            name += b"" if result.member is None else b"/" + result.member.encode("utf-8", "surrogateescape")
        self._stream.flush()
        self._stream.buffer.write(name + self._end)
        self._stream.buffer.flush()

    def end(self, summary: Summary) -> None:
        """Write nothing: every name is complete."""


class CountWriter:
    """The number of pictures that match."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._matches = 0

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Count it."""
        self._matches += is_match(result)

    def end(self, summary: Summary) -> None:  # noqa: ARG002
        """Write the number."""
        self._stream.write(f"{self._matches}\n")

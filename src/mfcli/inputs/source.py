"""One picture to classify: its name, and how it is opened.

An input that cannot be read becomes a source that fails when it is opened, so that every failure is a row of the
results. What the bytes mean is decided in decode.py.
"""

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from mfcli.errors import FailureCode, PictureError
from mfcli.files import url_scheme
from mfcli.inputs.arguments import STDIN
from mfcli.inputs.read_ahead import Download
from mfcli.inputs.selection import OFFLINE, Selection
from mfcli.inputs.walk import FileState, open_file, translate_os_errors
from mfcli.results import Failure, join_member
from mfcli.store_urls import HUB_SCHEME, SCHEMES, is_store_url

if TYPE_CHECKING:
    from mfcli.inputs.decode import DecodedPicture


@dataclass(frozen=True, slots=True)
class Source:
    """One picture to classify.

    Attributes:
        argument: as given by the user, undecodable bytes as surrogate escapes; for a file found in a folder, a path
            that begins with the folder as it was given.
        member: the path inside the archive `argument`; None for a picture that is not in an archive.
        failure: why it cannot be read, where that is known before it is opened.
        opener: returns the bytes; None where `argument` is the path of a file.
        whole: argument and member of the glob, the archive or the part of an archive that was searched for it; None
            for a picture that was named itself or found in a folder.
        decoded: the pixels, where they are in memory and nothing is opened.
        kept: what its row keeps, see `Selection.keep`.
        held_bytes: bytes of memory that it holds, where they are not the caller's.
        state: of the file or archive, where its listing said it.
    """

    argument: str
    member: str | None = None
    failure: Failure | None = None
    opener: Callable[[], BinaryIO] | None = None
    whole: tuple[str, str | None] | None = None
    decoded: "DecodedPicture | None" = None
    kept: dict[str, Any] | None = None
    held_bytes: int = 0
    state: FileState | None = None

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input, whose name does not identify the picture."""
        return self.argument == STDIN and self.opener is not None

    @property
    def raw(self) -> bytes:
        """The exact bytes of the argument."""
        return os.fsencode(self.argument)

    @property
    def input(self) -> str:
        """The argument as text; bytes that are not UTF-8 are U+FFFD."""
        return self.raw.decode("utf-8", errors="replace")

    @property
    def input_b64(self) -> str | None:
        """The argument's exact bytes in base64 where it is not UTF-8, else None."""
        return None if self.raw == self.input.encode() else base64.b64encode(self.raw).decode()

    @property
    def shown_name(self) -> str:
        """The name for people, as in `PictureResult`."""
        return join_member(self.input, self.member)

    def start(self) -> bool:
        """Begin to fetch it, if it is one that can be fetched before it is opened; return whether it is."""
        if not isinstance(self.opener, Download):
            return False
        self.opener.start()
        return True

    def open(self) -> BinaryIO:
        """Open the bytes for reading, seekable; several threads may open different sources at once.

        Raises:
            PictureError: any code; a file is not_found, permission, or unsupported when it is not a regular one.
        """
        if self.failure is not None:
            raise PictureError(self.failure.code, self.failure.message)
        with translate_os_errors():
            return open_file(self.argument) if self.opener is None else self.opener()


def make_url_source(url: str, selection: Selection) -> Source:
    """Return the picture of a URL, with the selection's limits; nothing is requested yet."""
    scheme = url_scheme(url)
    if scheme == "file":
        return _make_file_url_source(url)
    if scheme not in ("http", "https") and not is_store_url(url):
        message = f"{scheme}:// is not supported; http, https, file, {', '.join(SCHEMES)} and {HUB_SCHEME} are"
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, message))
    if selection.offline:
        return Source(url, failure=OFFLINE)
    if is_store_url(url):
        from mfcli.inputs.objects import open_ahead

        return Source(url, opener=open_ahead(url, selection))
    return Source(url, opener=partial(_fetch, url, selection.timeout_s, selection.max_bytes))


def _make_file_url_source(url: str) -> Source:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is not a valid file URL"))
    if host not in (None, "localhost"):
        return Source(url, failure=Failure(FailureCode.UNSUPPORTED, "is a file on another host"))
    path = os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
    return Source(url, opener=partial(open_file, path))


def _fetch(url: str, timeout_s: float, max_bytes: int) -> BinaryIO:
    from mfcli.inputs.web import open_url  # requests takes 100 ms to import

    return open_url(url, timeout_s, max_bytes)

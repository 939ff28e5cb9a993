"""The members of a tar archive, plain or compressed, in its own order; it is read once, as a stream."""

import bz2
import gzip
import io
import lzma
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, BinaryIO, cast

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.members import (
    IS_SPECIAL,
    Member,
    UnpackingBudget,
    check_name,
    check_size,
    refuse_bomb,
    relative_name,
)

_MAX_HEADER_BYTES = 2**20
"""Long names and attributes of a member, which tarfile reads into memory as a whole."""
_IS_SLOW = sys.version_info < (3, 11, 10) or (3, 12) <= sys.version_info < (3, 12, 6)
"""Whether tarfile takes time by the square of the length of a number in a member's attributes (CVE-2024-6232)."""
_LONG_NUMBER = re.compile(rb"[0-9]{256}")
"""No name of a file is as long."""
_REST_BYTES = 2**16
_HEADERS_WITH_DATA = frozenset(
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    ]
)


def iter_tar(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """Yield the members of a tar archive; each is read into memory before the next one is looked for.

    Args:
        file: the archive; it is closed at the end.
        takes: whether a member is wanted.
        max_bytes: the largest member that is read.

    Raises:
        tarfile.TarError: it is damaged or truncated, as may be any exception of the decompressors.
        PictureError: too_large; or data follows the end marker.
    """
    with (
        file,
        tarfile.open(
            fileobj=cast(BinaryIO, _TruncationGuard(_decompress(file))),
            mode="r|",
            tarinfo=_TarHeader,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive,
    ):
        budget = UnpackingBudget(os.fstat(file.fileno()).st_size)
        while True:
            with budget.spend_time():
                header = archive.next()
            if header is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header
            if not header.isdir() and takes(relative_name(header.name)):
                yield _read_member(archive, header, max_bytes)
        _refuse_rest(archive)


def _refuse_rest(archive: tarfile.TarFile) -> None:
    """Read on to the end of the file, where nothing but zeros may follow the end marker: it may be a hole.

    Raises:
        PictureError: decode.
    """
    rest = cast(BinaryIO, archive.fileobj)
    while data := rest.read(_REST_BYTES):
        if data.strip(b"\0"):
            message = "has data after its end marker, which is not read: a hole of zeros, or another archive"
            raise PictureError(FailureCode.DECODE, message)
        if len(data) < _REST_BYTES:
            return


def _read_member(archive: tarfile.TarFile, header: tarfile.TarInfo, max_bytes: int) -> Member:
    name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    failure = check_name(header.name) or (None if header.isreg() else IS_SPECIAL) or check_size(header.size, max_bytes)
    if failure:
        return Member(name, failure)
    packed = archive.extractfile(header)
    assert packed is not None  # it is a regular file
    return Member(name, None, partial(io.BytesIO, packed.read()), held_bytes=header.size)


def _decompress(file: BinaryIO) -> BinaryIO:
    """Return the plain tar; the compression is recognised by the first bytes, whatever the suffix says."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, _BombGuard(cast(IO[bytes], gzip.GzipFile(fileobj=file)), file))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, _BombGuard(cast(IO[bytes], bz2.BZ2File(file)), file))
    if magic == b"\xfd7zXZ\0":
        return cast(BinaryIO, _BombGuard(cast(IO[bytes], lzma.LZMAFile(file)), file))
    return file


class _BombGuard:
    """A decompressed stream that fails when it grows out of proportion to the compressed bytes read."""

    def __init__(self, data: IO[bytes], compressed: BinaryIO) -> None:
        self._data, self._compressed, self._bytes_out = data, compressed, 0
        self._budget = UnpackingBudget(os.fstat(compressed.fileno()).st_size)

    def read(self, size: int) -> bytes:
        """Read from the stream.

        Raises:
            PictureError: too_large.
        """
        data = self._budget.read(self._data, size)
        self._bytes_out += len(data)
        refuse_bomb(self._bytes_out, self._compressed.tell())
        return data


class _TruncationGuard:
    """A stream that fails when it is read beyond its end: tarfile skips what a header announces, there or not."""

    def __init__(self, data: BinaryIO) -> None:
        self._data, self._is_over = data, False

    def read(self, size: int) -> bytes:
        """Read from the stream.

        Raises:
            tarfile.ReadError: an earlier call reached the end.
        """
        data = self._data.read(size)
        if not data and self._is_over:
            raise tarfile.ReadError("unexpected end of data")
        self._is_over = not data
        return data


class _TarHeader(tarfile.TarInfo):
    """A header that raises when it is damaged; tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarHeader":
        if not buf:  # cut between two members
            raise tarfile.ReadError("unexpected end of data, the end marker is missing")
        if not buf.strip(b"\0"):
            return super().frombuf(buf, encoding, errors)  # raises what tarfile takes for the end
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.type in _HEADERS_WITH_DATA and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a name or attribute is too long")
        return header

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if _IS_SLOW:
            stream: Any = archive.fileobj
            data = stream.read(-(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            if _LONG_NUMBER.search(data):
                raise tarfile.ReadError("an attribute has a number of over 255 digits")
            stream.buf, stream.pos = data + stream.buf, stream.pos - len(data)  # to be read again
        return super()._proc_pax(archive)  # type: ignore[misc, no-any-return]

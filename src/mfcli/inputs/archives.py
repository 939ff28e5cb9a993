"""The pictures in a .zip or .tar archive, read without unpacking it to disk, and never beyond the caps.

Headers are not trusted: what counts is what comes out while reading. Links, devices and names that lead out of the
archive are refused, and archives in archives are not opened.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from mfcli.errors import FailureCode, PictureError, one_line
from mfcli.inputs.selection import MAX_NAME, in_natural_order
from mfcli.inputs.walk import open_file
from mfcli.results import Failure

_MAX_RATIO = 1000
"""Bytes out for one byte in; no picture but a blank one compresses like that, and deflate can reach 1032."""
_RATIO_FROM_BYTES = 64 * 2**20
"""Up to here any ratio will do: that of a blank bitmap of 20 million pixels, for one."""
_MAX_HEADER_BYTES = 2**20
"""Long names and attributes of a tar member, which tarfile reads as a whole."""
_HERE = re.compile(r"(\./+)+")
_CHUNK_BYTES = 2**18
_ENCRYPTED = 0x1
_SIZE_COMES_LATER = 0x8
_NAME_IS_UTF8 = 0x800
_LOCAL_HEADER = b"PK\3\4"
_LOCAL = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC-32, packed and unpacked size, lengths of name and extra field."""
_NAME_TOO_LONG = Failure(FailureCode.UNSUPPORTED, f"its name is over {MAX_NAME} characters")
_LEADS_OUT = Failure(FailureCode.UNSUPPORTED, "its name leads out of the archive, and is not read")


@dataclass(frozen=True, slots=True)
class Member:
    """One picture in an archive.

    Attributes:
        name: as text, bytes that are not UTF-8 as U+FFFD; None for what is wrong with the archive itself.
        failure: known without reading the member.
        opener: gives its bytes, seekable; may be called from any thread and raises PictureError.
    """

    name: str | None
    failure: Failure | None = None
    opener: Callable[[], BinaryIO] | None = None


def members(path: str, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """Yield the members of an archive: of a zip in natural order, of a tar in its own.

    A damaged archive gives what can be read, and then a member without a name that says what is wrong. A zip's members
    are read when they are opened, a tar's before the next one is asked for.

    Args:
        path: a zip file, or a tar file, plain or compressed by gzip, bzip2 or xz.
        takes: whether a member is wanted, by its path in the archive without a leading `./`.
        max_bytes: the largest member that is read.
    """
    try:
        with _archive_errors():
            file = open_file(path)
            is_zip = path.lower().endswith(".zip")
            yield from _zip_members(file, takes, max_bytes) if is_zip else _tar_members(file, takes, max_bytes)
    except PictureError as error:
        yield Member(None, Failure(error.code, error.message))


class LastArchive:
    """The archive that a list named last, kept open: its lines mostly name members of one archive after the other.

    A zip's table of contents is read once. A tar is gone through once for the names; then it is read on from where it
    is, and from its beginning only for a member that was passed already.
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin with none; `max_bytes` is the largest member that is read."""
        self._max_bytes = max_bytes
        self._identity: tuple[str, int, int, int, int] | None = None
        self._by_name: dict[str, list[Member]] = {}
        self._names: Counter[str] = Counter()
        self._rest: Iterator[Member] = iter(())
        self._wanted = ""

    def named(self, path: str, wanted: str) -> list[Member]:
        """Return the members of exactly this name; none where only going through all of the archive can tell.

        That is so for a name that is not there, or more than once in a tar, and for whatever is in a damaged archive.

        Args:
            path: the archive.
            wanted: the member, as `relative_name` returns it.
        """
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return []
        identity = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        is_zip = path.lower().endswith(".zip")
        if identity != self._identity:
            self._identity, self._by_name, self._rest = identity, {}, iter(())
            self._names.clear()
            if is_zip:
                self._read_contents(path)
            elif any(members(path, self._count, self._max_bytes)):  # what is wrong with it
                self._names.clear()
        if is_zip or self._names[wanted] != 1:
            return self._by_name.get(wanted, [])
        self._wanted = wanted
        if (member := next(self._rest, None)) is None or member.name is None:
            self._rest = members(path, self._is_wanted, self._max_bytes)
            member = next(self._rest, None)
        return [member] if member and member.name is not None else []

    def _read_contents(self, path: str) -> None:
        with contextlib.suppress(PictureError), _archive_errors(), contextlib.ExitStack() as stack:
            archive = _Zip(stack.enter_context(open_file(path)))
            stack.pop_all()  # it is closed with the last member
            for member in _contents(archive, lambda _: True, self._max_bytes):
                self._by_name.setdefault(relative_name(member.name or ""), []).append(member)

    def _count(self, name: str) -> bool:
        self._names[name] += 1
        return False

    def _is_wanted(self, name: str) -> bool:
        return name == self._wanted


@contextlib.contextmanager
def _archive_errors() -> Iterator[None]:
    """Turn whatever reading raises into a PictureError; hostile bytes raise almost anything."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError(FailureCode.TOO_LARGE, "does not fit into memory") from error
    except EOFError as error:
        raise PictureError(FailureCode.TRUNCATED, "is truncated: its data ends early") from error
    except RecursionError as error:  # names of names of names
        raise PictureError(FailureCode.DECODE, "is damaged: its headers are nested too deep") from error
    except RuntimeError as error:  # NotImplementedError among them
        raise PictureError(FailureCode.UNSUPPORTED, f"cannot be unpacked: {one_line(error)}") from error
    except tarfile.TarError as error:
        message = one_line(error)
        cut_off = any(words in message for words in ("unexpected end", "truncated", "empty"))
        code = FailureCode.TRUNCATED if cut_off else FailureCode.DECODE
        raise PictureError(code, f"is damaged: {message}") from error
    except Exception as error:
        raise PictureError(FailureCode.DECODE, f"is damaged: {one_line(error)}") from error


def relative_name(name: str) -> str:
    """Return the name of a member as it is compared: with slashes, without a leading `./`."""
    name = name.replace("\\", "/")  # some programs on Windows write it
    here = _HERE.match(name)
    return name[here.end() :] if here else name


def _name_failure(name: str) -> Failure | None:
    if len(name) > MAX_NAME:
        return _NAME_TOO_LONG
    parts = relative_name(name).split("/")
    leads_out = parts[0] == "" or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":")
    return _LEADS_OUT if leads_out else None


def _over_ratio(bytes_out: int, bytes_in: int) -> bool:
    return bytes_out > _RATIO_FROM_BYTES and bytes_out > _MAX_RATIO * max(1, bytes_in)


def _too_large(max_bytes: int) -> Failure:
    return Failure(FailureCode.TOO_LARGE, f"is over {max_bytes} bytes when unpacked")


# ------------------------------------------------------------------------------------------------------------- zip


class _Zip:
    """An open zip file, read by one thread at a time and closed when the last member is let go."""

    def __init__(self, file: BinaryIO) -> None:
        self._lock = threading.Lock()
        self.zip = zipfile.ZipFile(file)
        weakref.finalize(self, file.close)

    def open(self, info: zipfile.ZipInfo, max_bytes: int) -> BinaryIO:
        """Unpack a member into memory.

        Raises:
            PictureError: decode, truncated, too_large or unsupported.
        """
        with _archive_errors(), self._lock, self.zip.open(info) as packed:
            return _unpacked(packed, info.compress_size, max_bytes)


def _unpacked(packed: IO[bytes], compressed_bytes: int, max_bytes: int) -> BinaryIO:
    data = io.BytesIO()
    while chunk := packed.read(_CHUNK_BYTES):
        data.write(chunk)
        if data.tell() > max_bytes:
            failure = _too_large(max_bytes)
            raise PictureError(failure.code, failure.message)
        if _over_ratio(data.tell(), compressed_bytes):
            raise PictureError(FailureCode.TOO_LARGE, f"unpacks to over {_MAX_RATIO} times its size, like a bomb")
    data.seek(0)
    return data


def _zip_members(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    is_cut = file.read(4) == _LOCAL_HEADER
    try:
        archive = _Zip(file)
    except zipfile.BadZipFile as error:
        with file:
            if not is_cut:
                raise PictureError(FailureCode.DECODE, "is not a zip archive") from error
            yield from _salvaged(file, takes, max_bytes)
        raise PictureError(FailureCode.TRUNCATED, "is truncated: its table of contents is missing") from error
    yield from _contents(archive, takes, max_bytes)


def _contents(archive: _Zip, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    named = [(_zip_name(info), info) for info in archive.zip.infolist() if not info.is_dir()]
    for name, info in in_natural_order(named, lambda item: item[0]):
        if not takes(relative_name(name)):
            continue
        failure = _zip_failure(name, info, max_bytes)
        yield Member(name, failure, None if failure else partial(archive.open, info, max_bytes))


def _salvaged(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """What lies before the cut, in its order, as far as the headers tell where the next one is."""
    file.seek(0)
    while (header := file.read(_LOCAL.size)).startswith(_LOCAL_HEADER) and len(header) == _LOCAL.size:
        _, _, flags, method, _, _, crc, packed_bytes, size_bytes, name_bytes, extra_bytes = _LOCAL.unpack(header)
        if flags & _SIZE_COMES_LATER or packed_bytes > max_bytes:
            return
        raw_name = file.read(name_bytes)
        file.seek(extra_bytes, os.SEEK_CUR)
        packed = file.read(packed_bytes)
        if len(packed) < packed_bytes or not raw_name:
            return
        info = zipfile.ZipInfo(raw_name.decode("utf-8" if flags & _NAME_IS_UTF8 else "cp437", "replace"))
        info.flag_bits, info.file_size = flags, size_bytes
        name = _zip_name(info)
        if not info.is_dir() and takes(relative_name(name)):
            failure = _zip_failure(name, info, max_bytes)
            yield Member(name, failure, None if failure else partial(_inflated, packed, method, crc, max_bytes))


def _inflated(packed: bytes, method: int, crc: int, max_bytes: int) -> BinaryIO:
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PictureError(FailureCode.UNSUPPORTED, f"is packed by method {method}, and the archive is truncated")
    with _archive_errors():
        data = packed if method == zipfile.ZIP_STORED else zlib.decompressobj(-15).decompress(packed, max_bytes + 1)
        if len(data) > max_bytes or _over_ratio(len(data), len(packed)):
            failure = _too_large(max_bytes)
            raise PictureError(failure.code, failure.message)
        if zlib.crc32(data) != crc:
            raise zipfile.BadZipFile("its checksum is wrong")
    return io.BytesIO(data)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name as text: without the flag for UTF-8 it is code page 437 by the format, and often UTF-8 all the same."""
    if not info.flag_bits & _NAME_IS_UTF8:
        try:
            return info.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.orig_filename


def _zip_failure(name: str, info: zipfile.ZipInfo, max_bytes: int) -> Failure | None:
    if failure := _name_failure(name):
        return failure
    if info.flag_bits & _ENCRYPTED:
        return Failure(FailureCode.UNSUPPORTED, "is encrypted")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return Failure(FailureCode.UNSUPPORTED, "is a link or a device in the archive, and is not followed")
    return _too_large(max_bytes) if info.file_size > max_bytes else None


# ------------------------------------------------------------------------------------------------------------- tar


class _TarHeader(tarfile.TarInfo):
    """A header that says when it is damaged, where tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarHeader":
        if not buf:  # cut between two members, where tarfile would take it for the end, too
            raise tarfile.ReadError("unexpected end of data, the mark of its end is missing")
        if not buf.strip(b"\0"):
            return super().frombuf(buf, encoding, errors)  # raises what means the end
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.type in _HEADERS_WITH_DATA and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a name or attributes of it are too long")
        return header


_HEADERS_WITH_DATA = frozenset(
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    ]
)


class _Ending:
    """A stream whose end is an error when it is read twice: tarfile skips what a header says, there or not."""

    def __init__(self, data: BinaryIO) -> None:
        self._data, self._is_over = data, False

    def read(self, size: int) -> bytes:
        """Read from the stream.

        Raises:
            tarfile.ReadError: it was over before.
        """
        data = self._data.read(size)
        if not data and self._is_over:
            raise tarfile.ReadError("unexpected end of data")
        self._is_over = not data
        return data


class _Bounded:
    """Decompressed bytes, as long as they are not out of proportion to the compressed ones read."""

    def __init__(self, data: io.BufferedIOBase, compressed: BinaryIO) -> None:
        self._data, self._compressed, self._bytes_out = data, compressed, 0

    def read(self, size: int) -> bytes:
        """Read from the stream.

        Raises:
            PictureError: too_large.
        """
        data = self._data.read(size)
        self._bytes_out += len(data)
        if _over_ratio(self._bytes_out, self._compressed.tell()):
            raise PictureError(FailureCode.TOO_LARGE, f"unpacks to over {_MAX_RATIO} times its size, like a bomb")
        return data


def _decompressed(file: BinaryIO) -> BinaryIO:
    """What compressed the archive shows in its first bytes; its name may say something else."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, _Bounded(gzip.GzipFile(fileobj=file), file))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, _Bounded(bz2.BZ2File(file), file))
    if magic == b"\xfd7zXZ\0":
        return cast(BinaryIO, _Bounded(lzma.LZMAFile(file), file))
    return file


def _tar_members(file: BinaryIO, takes: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    with (
        file,
        tarfile.open(
            fileobj=cast(BinaryIO, _Ending(_decompressed(file))),
            mode="r|",
            tarinfo=_TarHeader,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive,
    ):
        while (header := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile remembers every header
            if not header.isdir() and takes(relative_name(header.name)):
                yield _tar_member(archive, header, max_bytes)


def _tar_member(archive: tarfile.TarFile, header: tarfile.TarInfo, max_bytes: int) -> Member:
    name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if failure := _name_failure(header.name):
        return Member(name, failure)
    if not header.isreg():
        message = "is a link or a device in the archive, and is not followed"
        return Member(name, Failure(FailureCode.UNSUPPORTED, message))
    if header.size > max_bytes:
        return Member(name, _too_large(max_bytes))
    packed = archive.extractfile(header)
    assert packed is not None  # it is a regular file
    data = packed.read()
    return Member(name, None, partial(io.BytesIO, data))
